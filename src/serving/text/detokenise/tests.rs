use super::*;
use crate::text::tests::{byte, reference, sentencepiece};

#[test]
fn a_text_that_is_cut_within_a_character_ends_before_it_and_invalid_bytes_stay() {
    let ended = |codec: &TextCodec, ids: &[u32]| {
        let mut detokeniser = Detokeniser::after(codec.clone(), &[]).unwrap();
        let given: String = ids.iter().map(|&id| detokeniser.push(id).unwrap()).collect();
        given + &detokeniser.end().unwrap()
    };
    let pieces = |bytes: &[u8]| bytes.iter().map(|&value| byte(value)).collect::<Vec<u32>>();
    // Every byte is a token of its own there, too.
    let levels = |bytes: &[u8]| {
        let alone = |value: &u8| {
            let text = char::from_u32(match value {
                b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => u32::from(*value),
                0..=b' ' => 0x100 + u32::from(*value),
                0x7F..=0xA0 => 0x121 + u32::from(*value - 0x7F),
                0xAD => 0x143,
            });
            reference().tokenizer().token_to_id(&text.unwrap().to_string()).unwrap()
        };
        bytes.iter().map(alone).collect::<Vec<u32>>()
    };
    let train = "🚂".as_bytes();
    for (bytes, text) in [
        (train[..1].to_vec(), ""),
        (train[..2].to_vec(), ""),
        (train[..3].to_vec(), ""),
        (train.to_vec(), "🚂"),
        ([train, &train[..2]].concat(), "🚂"),
        (b"c\xC3".to_vec(), "c"),
        // No character begins so.
        (b"c\xFF".to_vec(), "c\u{FFFD}"),
        (b"c\x9F".to_vec(), "c\u{FFFD}"),
        (b"c\xFF\xC3".to_vec(), "c\u{FFFD}"),
        (b"c\xC3\xC3".to_vec(), "c\u{FFFD}"),
    ] {
        assert_eq!(ended(&reference(), &levels(&bytes)), text, "{bytes:x?}");
        let codec = sentencepiece();
        let ids: Vec<u32> = match bytes.strip_prefix(b"c") {
            Some(rest) => {
                let c = codec.tokenizer().token_to_id("c").unwrap();
                [vec![c], pieces(rest)].concat()
            }
            None => pieces(&bytes),
        };
        assert_eq!(ended(&codec, &ids), text, "{bytes:x?} in pieces");
    }
}
