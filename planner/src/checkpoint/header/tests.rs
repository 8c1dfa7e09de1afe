//! Each error is reached, and the `safetensors` crate's own reader agrees on what is a valid file.

use super::*;
use proptest::prelude::*;
use safetensors::SafeTensors;

/// A file with `json` as its header and `data_bytes` bytes of data.
fn file(json: &str, data_bytes: usize) -> Vec<u8> {
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

fn read(bytes: &[u8]) -> Result<Header, HeaderError> {
    read_header(bytes, bytes.len() as u64)
}

fn message(json: &str, data_bytes: usize) -> String {
    read(&file(json, data_bytes)).unwrap_err().to_string()
}

#[test]
fn a_valid_header_gives_tensors_in_the_order_of_their_bytes() {
    let json = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]},
        "a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}}"#;
    let header = read(&file(json, 12)).unwrap();
    let names: Vec<_> = header.tensors.iter().map(|t| &*t.name).collect();
    assert_eq!(names, ["a", "b"]);
    let start = 8 + json.len() as u64;
    assert_eq!(header.tensors[1].bytes.start(), start + 4);
    assert_eq!(header.tensors[1].bytes.stop(), start + 12);
}

#[test]
fn sub_byte_dtypes_fill_whole_bytes() {
    let json = r#"{"a":{"dtype":"F4","shape":[3,2],"data_offsets":[0,3]},
        "b":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[3,6]}}"#;
    assert_eq!(read(&file(json, 6)).unwrap().tensors.len(), 2);
    let odd = r#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,2]}}"#;
    assert!(message(odd, 2).contains("whole bytes"));
}

#[test]
fn a_header_beyond_the_file_is_refused_before_it_is_read() {
    let mut bytes = file("{}", 0);
    bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(read(&bytes), Err(HeaderError::HeaderBeyondFile { file_bytes: 10, .. })));
    assert!(matches!(read(&bytes[..5]), Err(HeaderError::TooShort { file_bytes: 5 })));
    // The caller's length is larger than what can be read: the file shrank meanwhile.
    assert!(matches!(read_header(&file("{}", 0)[..9], 10), Err(HeaderError::Read(_))));
}

#[test]
fn a_header_that_is_not_json_is_refused() {
    assert!(message("{\"a\":", 0).contains("not the JSON"));
    assert!(message("[]", 0).contains("not the JSON"));
}

#[test]
fn an_entry_that_is_no_tensor_is_named() {
    let unknown = r#"{"w":{"dtype":"F5","shape":[1],"data_offsets":[0,1]}}"#;
    let text = message(unknown, 1);
    assert!(text.contains("`w`") && text.contains("F5"), "{text}");
    assert!(message(r#"{"__metadata__":{"a":1}}"#, 0).contains("`__metadata__`"));
}

#[test]
fn a_tensor_named_twice_is_named() {
    let twice = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
        "a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    assert_eq!(message(twice, 1), "the header has tensor `a` twice");
}

#[test]
fn offsets_that_overlap_gap_or_leave_the_file_are_named() {
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
        )
    };
    let cases = [
        (two("[0,4]", "[2,6]"), 6, "tensors `a` and `b` overlap by 2 bytes"),
        (two("[0,4]", "[6,10]"), 10, "2 bytes before tensor `b` belong to no tensor"),
        (two("[0,4]", "[4,8]"), 9, "1 bytes at the end of the file belong to no tensor"),
        (two("[0,4]", "[8,4]"), 8, "tensor `b` ends at 4, before it starts at 8"),
    ];
    for (json, data, expected) in cases {
        assert_eq!(message(&json, data), expected);
    }
    let beyond = message(&two("[0,4]", "[4,8]"), 7);
    assert!(beyond.contains("tensor `b` ends at byte") && beyond.contains("but the file has"));
    let huge = message(&two("[0,4]", "[18446744073709551611,18446744073709551615]"), 8);
    assert!(huge.contains("`b` ends at byte"), "{huge}");
}

#[test]
fn a_shape_that_contradicts_its_bytes_is_named() {
    let json = r#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,8]}}"#;
    let text = message(json, 8);
    assert!(text.contains("needs 12 bytes, but its offsets give it 8"), "{text}");
    let overflow = r#"{"a":{"dtype":"F32","shape":[18446744073709551615,4],"data_offsets":[0,8]}}"#;
    assert!(message(overflow, 8).contains("larger than any file"));
    let ones = vec!["1"; 65].join(",");
    let deep = format!(r#"{{"a":{{"dtype":"U8","shape":[{ones}],"data_offsets":[0,1]}}}}"#);
    assert!(message(&deep, 1).contains("65 dimensions"));
}

#[derive(Debug, Clone)]
struct Declared {
    dtype: &'static str,
    bytes_each: u64,
    elements: u64,
    shift: i64,
}

fn declared() -> impl Strategy<Value = Declared> {
    let dtype = prop_oneof![Just(("U8", 1)), Just(("BF16", 2)), Just(("F32", 4)), Just(("I64", 8))];
    // Mostly valid: a shift of the offsets is rare.
    let shift = prop_oneof![12 => Just(0i64), 1 => -3i64..4];
    (dtype, 0u64..5, shift).prop_map(|((dtype, bytes_each), elements, shift)| Declared {
        dtype,
        bytes_each,
        elements,
        shift,
    })
}

proptest! {
    #[test]
    fn we_accept_just_what_the_safetensors_crate_accepts(
        tensors in prop::collection::vec(declared(), 0..6),
        extra in prop_oneof![9 => Just(0usize), 1 => 1usize..4],
    ) {
        let (mut start, mut entries) = (0u64, Vec::new());
        for (number, tensor) in tensors.iter().enumerate() {
            let stop = start + tensor.bytes_each * tensor.elements;
            let (from, to) = (start.saturating_add_signed(tensor.shift), stop.saturating_add_signed(tensor.shift));
            entries.push(format!(
                r#""t{number}":{{"dtype":"{}","shape":[{}],"data_offsets":[{from},{to}]}}"#,
                tensor.dtype, tensor.elements,
            ));
            start = stop;
        }
        let bytes = file(&format!("{{{}}}", entries.join(",")), usize::try_from(start).unwrap() + extra);
        let theirs = SafeTensors::read_metadata(&bytes).is_ok();
        prop_assert_eq!(read(&bytes).is_ok(), theirs);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(json in ".{0,200}", tail in prop::collection::vec(any::<u8>(), 0..32)) {
        let mut bytes = file(&json, 0);
        bytes.extend(tail);
        let _ = read(&bytes);
    }
}
