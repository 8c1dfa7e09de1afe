//! `layouts --html`: the page is whole, alone and harmless. How it looks and behaves in a browser is tested by `tests/report/run`.

use crate::support::{
    Outcome, copy_folder, fixture, listing, shardwright, text,
    tiny::{Checkpoint, LLAMA_70B, QWEN2_7B},
};
use std::{
    fs,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// Names as nobody means well by them.
const HOSTILE: &str =
    "two </title></style></script><script>alert(1)</script><img src=x onerror=alert(2)> & \\\"'";

/// The page about a checkpoint, beside what was printed.
fn page(checkpoint: &Path, folder: &Path, args: &[&str]) -> (String, Outcome) {
    let file = folder.join("page.html");
    let outcome = shardwright(&[&["layouts", text(checkpoint), "--html", text(&file)], args].concat());
    (fs::read_to_string(&file).unwrap_or_default(), outcome)
}

/// A machine of five GPUs of two kinds, whose names are those of an enemy.
fn hostile_machine(folder: &Path) -> PathBuf {
    let file = folder.join("machine.yaml");
    let machine = format!(
        "topology: \"{HOSTILE}\"\nabout: \"{HOSTILE}\"\ngpu:\n  - {{ kind: RTX 4090, gpus: 0-1 }}\n  \
         - {{ kind: \"<b>card</b>\", memory: 40 GiB, memory_bandwidth: 900 GB/s, gpus: 2-4 }}\ngpus: 5\nhubs:\n  \
         - {{ name: cpu0, kind: host-bridge, gpus: 0-4, bandwidth: 31.5 GB/s, numa: 0 }}\n"
    );
    fs::write(&file, machine).unwrap();
    file
}

/// Widths of the parts of each bar, in percent.
fn bars(page: &str) -> Vec<Vec<f64>> {
    let bars = page.split("<svg class=\"bar\"").skip(1).map(|bar| bar.split("</svg>").next().unwrap());
    let width = |part: &str| part.split("width=\"").nth(1)?.split('%').next()?.parse().ok();
    bars.map(|bar| bar.split("<rect ").skip(1).filter_map(width).collect()).collect()
}

#[test]
fn a_page_needs_nothing_but_itself_and_has_every_layout() {
    let checkpoint = Checkpoint::sharded(LLAMA_70B, 30);
    let folder = TempDir::new().unwrap();
    let machine = ["--topology", "dgx-h100", "--concurrency", "64"];
    let (page, outcome) = page(&checkpoint.path, folder.path(), &machine);
    let told = outcome.succeeded();
    assert!(told.contains("\npage written to "), "{told}");
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    assert!(page.contains("Content-Security-Policy\" content=\"default-src 'none'; style-src 'sha256-"));
    let text = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "").to_lowercase();
    for loads in
        ["http:", "https:", "src=", "href=", "url(", "@import", "<link", "<iframe", "<object", "style="]
    {
        assert!(!text.contains(loads), "{loads} in the page");
    }
    assert_eq!(page.matches("<script").count(), 1);

    let args = [&["layouts", self::text(&checkpoint.path), "--json"], &machine[..]].concat();
    let json = shardwright(&args).json();
    let layouts = json["machines"][0]["layouts"].as_array().unwrap();
    let table = page.split("<table class=\"layouts\">").nth(1).unwrap().split("</table>").next().unwrap();
    assert_eq!(table.split("<tbody>").nth(1).unwrap().matches("<tr").count(), layouts.len());
    for layout in layouts {
        let key = |name: &str| layout[name].as_u64().unwrap();
        let row = format!(
            "data-key=\"{}\">{0}</td><td class=\"number\" data-key=\"{}\">{1}</td><td class=\"number\" data-key=\"{}\">{2}</td>",
            key("tp"),
            key("pp"),
            key("dp")
        );
        assert!(table.contains(&row), "{row}");
    }
    // All GPUs hold alike, and a step has a bar of its own.
    let bars = bars(&page);
    assert_eq!(bars.len(), 2);
    for bar in bars {
        assert!((bar.iter().sum::<f64>() - 100.0).abs() < 0.02, "{bar:?}");
    }
    for part in ["weights", "16.43", "tp group 0", "vllm serve ", "memory.runtime", "300 MiB"] {
        assert!(page.contains(part), "no {part}");
    }
    assert_eq!(listing(folder.path()), ["page.html"]);
}

#[test]
fn the_same_layouts_give_the_same_page() {
    let folder = TempDir::new().unwrap();
    let machine = ["--topology", "dgx-h100", "--nodes", "2", "--context-len", "64"];
    let path = fixture("llama-bf16");
    let (first, _) = page(&path, folder.path(), &machine);
    let (second, outcome) = page(&path, folder.path(), &[&machine[..], &["--json"]].concat());
    assert!(!first.is_empty());
    assert_eq!(first, second);
    outcome.json();
}

#[test]
fn names_from_files_stay_text() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("<img src=x onerror=alert(3)>&\"'");
    copy_folder(&fixture("llama-bf16"), &path);
    let config = fs::read_to_string(path.join("config.json")).unwrap();
    let config = config.replace("\"llama\"", "\"<script>alert(4)</script>\"");
    fs::write(path.join("config.json"), config).unwrap();
    let machine = hostile_machine(folder.path());
    let (page, outcome) = page(&path, folder.path(), &["--topology", text(&machine), "--context-len", "64"]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    for bad in ["<img", "<b>", "<script>alert", "</style></script>"] {
        assert!(!page.contains(bad), "{bad}");
    }
    for shown in
        ["&lt;img src=x onerror=alert(3)&gt;&amp;", "&lt;b&gt;card&lt;/b&gt;", "&lt;script&gt;alert(4)"]
    {
        assert!(page.contains(shown), "no {shown}");
    }
    for tag in ["<script", "</script", "<style", "</style", "</body"] {
        assert_eq!(page.matches(tag).count(), 1, "{tag}");
    }
}

#[test]
fn every_stage_that_differs_has_its_bar() {
    // 28 query heads do not divide by 5: five stages on two kinds of GPUs.
    let checkpoint = Checkpoint::new(QWEN2_7B, "qwen2");
    let machine = hostile_machine(checkpoint.beside("").as_path());
    let (page, outcome) = page(&checkpoint.path, &checkpoint.beside(""), &["--topology", text(&machine)]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(bars(&page).len(), 5);
    for stage in ["Stage 0, layers 0–", "Stage 4, layers ", "–27, &lt;b&gt;card"] {
        assert!(page.contains(stage), "no {stage}");
    }
    assert!(page.contains("how fast they are is not known"));
}

#[test]
fn what_does_not_fit_is_told_on_a_page_too() {
    let checkpoint = Checkpoint::sharded(LLAMA_70B, 30);
    let (page, outcome) = page(&checkpoint.path, &checkpoint.beside(""), &["--topology", "4xrtx4090"]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stdout.contains("page written to ") && outcome.stderr.starts_with("error: does not fit"));
    assert!(page.contains("Does not fit") && page.contains("out: lacks 13.23 GiB") && !page.contains("vllm"));
    let bars = bars(&page);
    assert!(bars.len() == 1 && (bars[0].iter().sum::<f64>() - 100.0).abs() < 0.02, "{bars:?}");
}

#[test]
fn a_page_that_cannot_be_written_is_named() {
    let path = fixture("llama-bf16");
    let to = |file: &str| {
        let args = ["layouts", text(&path), "--topology", "dgx-h100", "--context-len", "64", "--html", file];
        shardwright(&args)
    };
    to("/nowhere/page.html").refused(4, &["cannot write /nowhere/page.html: "]);
    to("/dev/full").refused(4, &["cannot write /dev/full: ", "No space left"]);
    let both = ["layouts", text(&path), "--html", "page.html", "--what-if", "dgx-h100"];
    shardwright(&both).refused(2, &["cannot be used with"]);
}
