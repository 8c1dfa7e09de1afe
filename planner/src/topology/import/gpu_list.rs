//! What `nvidia-smi -L` prints: a line for each GPU, with its product name.

use super::{ImportError, ImportProblem, MAX_GPUS, Source};

/// The product names in the order of the GPUs. Parts of GPUs (MIG) are passed over.
pub(super) fn parse(source: &Source<'_>) -> Result<Vec<String>, ImportError> {
    let mut names = Vec::new();
    for (number, line) in source.bounded()?.lines().enumerate() {
        // A part of a GPU starts with `MIG`, and a shell's prompt with anything.
        let Some(rest) = line.trim().strip_prefix("GPU ") else { continue };
        let (expected, line_number) = (names.len(), number + 1);
        if expected == MAX_GPUS {
            return Err(source.fails(ImportProblem::TooMany {
                count: MAX_GPUS + 1,
                what: "GPUs",
                most: MAX_GPUS,
            }));
        }
        let wrong = || {
            source.fails(ImportProblem::ListLine {
                line: line_number,
                text: line.trim().to_owned(),
                expected,
            })
        };
        let (gpu, name) = rest.split_once(':').ok_or_else(wrong)?;
        let name = name.split_once("(UUID").map_or(name, |(name, _)| name).trim();
        if gpu.trim().parse() != Ok(expected) || name.is_empty() {
            return Err(wrong());
        }
        names.push(name.to_owned());
    }
    match names.is_empty() {
        true => Err(source.fails(ImportProblem::EmptyList)),
        false => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(text: &str) -> Result<Vec<String>, ImportError> {
        parse(&Source { origin: "gpus.txt", text })
    }

    #[test]
    fn names_are_read_and_parts_of_gpus_passed_over() {
        let text = "$ nvidia-smi -L\nGPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-5c8)\n  MIG 1g.10gb Device 0: (UUID: MIG-1)\r\nGPU 1: Tesla P40\n";
        assert_eq!(list(text).unwrap(), ["NVIDIA A100-SXM4-80GB", "Tesla P40"]);
    }

    #[test]
    fn a_list_out_of_order_is_named_with_its_line() {
        for wrong in ["GPU 1: X", "GPU 0:", "GPU 0: (UUID: x)", "GPU x: X", "GPU 0 X", "GPU -1: X"] {
            let error = list(&format!("\n{wrong}\n")).unwrap_err();
            assert!(matches!(error.problem, ImportProblem::ListLine { line: 2, expected: 0, .. }), "{error}");
        }
        assert_eq!(list("no devices found\n").unwrap_err().problem, ImportProblem::EmptyList);
        let many: String = (0..1_000_000 / 20).map(|gpu| format!("GPU {gpu}: X\n")).collect();
        assert!(matches!(list(&many).unwrap_err().problem, ImportProblem::TooMany { .. }));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(GPU [0-9: X(]{0,9}\n|.{0,9}){0,9}") {
            let _ = list(&text);
        }
    }
}
