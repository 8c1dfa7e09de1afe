//! The document: what comes back, and what is refused.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn value() -> Value {
    serde_json::from_slice(&document().to_json().unwrap()).unwrap()
}

fn read(value: &Value) -> Result<Document, DocumentError> {
    Document::from_json(value.to_string().as_bytes())
}

fn any_tensor() -> impl Strategy<Value = TensorPlace> {
    let dtypes = prop_oneof![Just(Dtype::BF16), Just(Dtype::F32), Just(Dtype::U8), Just(Dtype::F8_E4M3)];
    (any::<String>(), dtypes, prop::collection::vec(0u64..9, 0..4), 0u64..99)
        .prop_map(|(name, dtype, shape, at)| place(&name, dtype, &shape, at * 256))
}

prop_compose! {
    fn any_rank()(
        rank in 0u32..1000, uuid in any::<String>(), name in any::<String>(), handle in any::<[u8; 32]>(),
        fingerprint in "[0-9a-f]{32}", tensors in prop::collection::vec(any_tensor(), 0..6), spare in 0u64..999,
    ) -> HeldRank {
        let mut tensors = tensors;
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        tensors.dedup_by(|a, b| a.name == b.name);
        let end = tensors.iter().map(|tensor| tensor.offset + tensor.held.bytes).max().unwrap_or(0);
        HeldRank {
            rank, gpu: HeldGpu { uuid, name }, bytes: end + spare, fingerprint,
            handle: std::array::from_fn(|at| handle[at / 2]),
            tensors: Arc::new(PlacedTensors::new(tensors)),
        }
    }
}

prop_compose! {
    fn any_document()(
        shardwright in any::<String>(), pid in any::<u32>(), since in any::<u64>(), plan in "[0-9a-f]{64}",
        checkpoint in any::<String>(), verified in 0usize..3, ranks in prop::collection::vec(any_rank(), 0..4),
    ) -> Document {
        use crate::verify::Extent;
        let mut ranks = ranks;
        ranks.sort_by_key(|rank| rank.rank);
        ranks.dedup_by_key(|rank| rank.rank);
        let verified = [None, Some(Extent::Full), Some(Extent::Sample)][verified];
        Document { shardwright, pid, since, plan, checkpoint, verified, ranks }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read(document in any_document()) {
        let json = document.to_json().unwrap();
        prop_assert!(!json.contains(&b'\n'));
        prop_assert_eq!(Document::from_json(&json).unwrap(), document);
    }

    #[test]
    fn broken_bytes_are_refused_or_checked(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut json = document().to_json().unwrap();
        let place = place.index(json.len());
        json[place] = byte;
        if let Ok(read) = Document::from_json(&json) {
            for rank in &read.ranks {
                for tensor in rank.tensors.all() {
                    prop_assert!(tensor.offset + tensor.held.bytes <= rank.bytes);
                }
            }
        }
    }
}

#[test]
fn it_says_what_is_held() {
    let document = document();
    assert_eq!(document.ranks.iter().map(|rank| rank.rank).collect::<Vec<_>>(), [0, 1]);
    assert_eq!((document.pid, document.bytes(), document.verified), (std::process::id(), 1024, None));
    let first = &document.ranks[0];
    assert_eq!((first.gpu.uuid.as_str(), first.gpu.name.as_str()), ("GPU-pretended", "Pretended GPU"));
    let ours = memory_fingerprint(&Pretended::new(512, 0)).unwrap().to_string();
    assert_eq!(first.fingerprint, ours);
    assert_ne!(document.ranks[1].fingerprint, ours);
    let unnamed = Document::of(&[loaded(0, Pretended::boxed(512, 0))], &Facts::default()).unwrap();
    assert_eq!(unnamed.ranks[0].gpu.name, "cuda:3");
}

#[test]
fn an_empty_memory_has_a_fingerprint_too() {
    let memory = HostDevice.allocate(0).unwrap();
    assert_eq!(memory_fingerprint(memory.as_ref()).unwrap(), Fingerprint::default());
}

#[test]
fn what_others_cannot_open_and_what_is_wrong_is_not_held() {
    let on_host = loaded(5, HostDevice.allocate(512).unwrap());
    let error = Document::of(&[on_host], &facts()).unwrap_err();
    insta::assert_snapshot!(error, @"rank 5 lies in memory that other processes cannot open");
    let mut wrong = loaded(2, Pretended::boxed(512, 0));
    let mismatch = crate::verify::Mismatch {
        tensor: "embed".to_owned(),
        ranks: vec![2],
        expected: Fingerprint::default(),
        found: Fingerprint::default(),
    };
    wrong.verified = Some(crate::verify::Verified { mismatches: vec![mismatch], ..Default::default() });
    let error = Document::of(&[wrong], &facts()).unwrap_err();
    insta::assert_snapshot!(error, @"rank 2 does not verify, 1 tensor wrong: it is not held");
}

/// What is said of the document with `field` set to `to`.
fn refused(field: &str, to: Value) -> String {
    let mut value = value();
    *value.pointer_mut(field).unwrap() = to;
    read(&value).unwrap_err().to_string()
}

#[test]
fn hostile_documents_are_refused_by_name() {
    read(&value()).unwrap();
    let tensor = "/ranks/0/tensors/1";
    let of_tensor = |field: &str, to: Value| refused(&format!("{tensor}/{field}"), to);
    let rank = |field: &str, to: Value| refused(&format!("/ranks/1/{field}"), to);
    let found = [
        refused("/protocol", json!(2)),
        refused("/plan", json!("0123")),
        refused("/plan", json!("Z".repeat(64))),
        refused("/shardwright", json!("x".repeat(5000))),
        refused("/ranks", Value::Array(vec![value()["ranks"][0].clone(); 1025])),
        rank("rank", json!(0)),
        rank("handle", json!("a5")),
        rank("handle", json!("é".repeat(64))),
        rank("fingerprint", json!("?")),
        rank("device/uuid", json!("x".repeat(5000))),
        of_tensor("offset", json!(512)),
        of_tensor("offset", json!(u64::MAX)),
        of_tensor("offset", json!(255)),
        of_tensor("bytes", json!(31)),
        of_tensor("bytes", json!(u64::MAX)),
        of_tensor("shape", json!([u64::MAX, u64::MAX])),
        of_tensor("shape", json!([u64::MAX / 8, 8, 0])),
        of_tensor("name", json!("embed")),
    ];
    insta::assert_snapshot!(found.join("\n"), @r"
    it is of protocol 2, this shardwright reads protocol 1
    `plan` must be 64 hexadecimal digits
    `plan` must be 64 hexadecimal digits
    `shardwright` must be 4096 bytes at most
    it has 1025 ranks, at most 1024 are read
    rank 0: `rank` must be greater than the one before it
    rank 1: `handle` must be 64 bytes in hexadecimal digits
    rank 1: `handle` must be 64 bytes in hexadecimal digits
    rank 1: `fingerprint` must be 32 hexadecimal digits
    rank 1: `uuid` must be 4096 bytes at most
    rank 0: tensor `a norm` has 32 bytes at 512, outside a memory of 512
    rank 0: tensor `a norm` has 32 bytes at 18446744073709551615, outside a memory of 512
    rank 0: tensor `a norm` begins at byte 255, no multiple of 256
    rank 0: tensor `a norm` has 31 bytes, which its dtype and shape do not make up
    rank 0: tensor `a norm` has 18446744073709551615 bytes, which its dtype and shape do not make up
    rank 0: tensor `a norm` has 32 bytes, which its dtype and shape do not make up
    rank 0: tensor `a norm` has 32 bytes, which its dtype and shape do not make up
    rank 0: tensor `embed` stands twice
    ");
    // What serde says is not ours to promise.
    for said in [
        of_tensor("dtype", json!("F7\u{1b}[2J")),
        rank("device/kind", json!("rocm")),
        refused("/verified", json!("perhaps")),
        refused("/pid", json!(-1)),
        Document::from_json(b"{}").unwrap_err().to_string(),
        Document::from_json(&[0xff; 9]).unwrap_err().to_string(),
        Document::from_json("[".repeat(1 << 20).as_bytes()).unwrap_err().to_string(),
    ] {
        let whole = said.contains(" at line 1 column ");
        assert!((whole || said.ends_with('…')) && !said.contains('\u{1b}'), "{said}");
    }
}
