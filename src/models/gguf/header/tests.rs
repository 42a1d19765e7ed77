//! Headers that are whole, headers that are not, and headers that mean harm.

use super::*;

/// Writes headers, sound or not.
#[derive(Clone)]
struct Writer(Vec<u8>);

impl Writer {
    fn new(tensors: u64, pairs: u64) -> Self {
        let mut writer = Self(b"GGUF".to_vec());
        writer.u32(3).u64(tensors).u64(pairs);
        writer
    }

    fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.u64(text.len() as u64);
        self.0.extend(text.as_bytes());
        self
    }

    fn tensor(&mut self, name: &str, shape: &[u64], kind: u32, offset: u64) -> &mut Self {
        self.text(name).u32(shape.len() as u32);
        for size in shape {
            self.u64(*size);
        }
        self.u32(kind).u64(offset)
    }

    /// Parses it as the beginning of a file that has so many more bytes.
    fn parse(&self, more: u64) -> Result<Option<Header<'_>>, String> {
        let size = self.0.len() as u64 + more;
        Header::parse("x.gguf", size, &self.0).map_err(|error| error.to_string())
    }

    /// Why it is refused.
    fn fault(&self, more: u64) -> String {
        match self.parse(more) {
            Err(fault) => fault,
            Ok(header) => panic!("it was taken: {:?}", header.map(|header| header.length)),
        }
    }
}

const Q8_0: u32 = 8;

fn sound() -> Writer {
    let mut writer = Writer::new(2, 4);
    writer.text("general.architecture").u32(8).text("llama");
    writer.text("llama.block_count").u32(4).u32(7);
    writer.text("words").u32(9).u32(8).u64(2).text("a").text("bc");
    writer.text("scores").u32(9).u32(6).u64(2).u32(1.5f32.to_bits()).u32(0);
    writer.tensor("w", &[64, 2], Q8_0, 0).tensor("v", &[3], 0, 160);
    writer
}

#[test]
fn a_sound_header_is_read_whole_and_only_when_it_is_whole() {
    let writer = sound();
    let header = writer.parse(1000).unwrap().unwrap();
    assert_eq!(header.length, writer.0.len() as u64);
    assert_eq!(header.metadata["llama.block_count"], Value::Unsigned(7));
    let Value::Array(words) = header.metadata["words"] else { panic!("an array") };
    assert_eq!(words.texts().collect::<Vec<_>>(), ["a", "bc"]);
    let Value::Array(scores) = header.metadata["scores"] else { panic!("an array") };
    assert_eq!(scores.numbers().collect::<Vec<_>>(), [1.5, 0.0]);
    assert_eq!(scores.texts().count(), 0);
    let data = header.length.next_multiple_of(32);
    let [w, v] = header.tensors.as_slice() else { panic!("two tensors") };
    assert_eq!((w.name, w.shape.as_slice(), w.start), ("w", [2, 64].as_slice(), data));
    assert_eq!((v.stored, v.start), (Stored::F32, data + 160));
    // 64 x 2 values in blocks of 32, and 3 floats behind what fills up to 160.
    let end = data + 160 + 12;
    assert!(writer.parse(end - header.length).is_ok());
    assert!(writer.fault(end - header.length - 1).contains("truncated or damaged"));
}

#[test]
fn every_beginning_asks_for_more_and_a_file_that_ends_there_is_refused() {
    let whole = sound();
    for length in 0..whole.0.len() {
        let part = Writer(whole.0[..length].to_vec());
        assert!(part.parse(10_000).unwrap().is_none(), "{length}");
        assert!(part.parse(0).is_err(), "{length}");
    }
    let size = whole.0.len() as u64 + 1000;
    assert_eq!(gguf_bytes("x.gguf", size, &[]).unwrap(), size, "a small file at once");
    assert_eq!(gguf_bytes("x.gguf", size, &whole.0).unwrap(), whole.0.len() as u64);
    assert_eq!(gguf_bytes("x.gguf", 1 << 40, &whole.0[..100]).unwrap(), 256 << 10);
}

#[test]
fn counts_and_lengths_that_no_file_can_hold_are_refused_at_once() {
    let huge = 1u64 << 60;
    let file = 1 << 40;
    let mut many_words = Writer::new(0, 1);
    many_words.text("words").u32(9).u32(8).u64(huge);
    let mut many_bytes = Writer::new(0, 1);
    many_bytes.text("bytes").u32(9).u32(0).u64(huge);
    let mut wrapping = Writer::new(0, 1);
    wrapping.text("numbers").u32(9).u32(12).u64(u64::MAX / 8 + 2);
    let mut long_key = Writer::new(0, 1);
    long_key.u64(u64::MAX);
    let mut long_text = Writer::new(0, 1);
    long_text.text("name").u32(8).u64(huge);
    let faults = [
        (Writer::new(0, huge), "metadata entries"),
        (Writer::new(huge, 0), "tensors"),
        (many_words, "array elements"),
        (many_bytes, "array elements"),
        (wrapping, "array elements"),
        (long_key, "bytes of a text"),
        (long_text, "bytes of a text"),
    ];
    for (writer, expected) in faults {
        let fault = writer.fault(file);
        assert!(fault.contains(expected), "{fault}");
    }
}

#[test]
fn values_of_wrong_types_names_that_are_none_and_repeated_keys_are_refused() {
    let mut unknown = Writer::new(0, 1);
    unknown.text("key").u32(13);
    let mut nested = Writer::new(0, 1);
    nested.text("key").u32(9).u32(9).u64(1);
    let mut twice = Writer::new(0, 2);
    twice.text("key").u32(7).0.push(1);
    twice.text("key").u32(7).0.push(1);
    let mut binary = Writer::new(0, 1);
    binary.u64(2).0.extend([0xff, 0xfe]);
    let mut other = Writer(b"GGML".to_vec());
    other.u32(3);
    let mut old = Writer(b"GGUF".to_vec());
    old.u32(1);
    let mut swapped = Writer(b"GGUF".to_vec());
    swapped.u32(3u32.swap_bytes());
    let faults = [
        (unknown, "type 13"),
        (nested, "array of arrays"),
        (twice, "'key' twice"),
        (binary, "not UTF-8"),
        (other, "does not begin with GGUF"),
        (old, "version 1"),
        (swapped, "version 50331648"),
    ];
    for (writer, expected) in faults {
        let fault = writer.fault(1000);
        assert!(fault.contains(expected), "{fault}");
    }
}

#[test]
fn alignments_that_are_none_are_refused() {
    for (kind, number) in [(4, 0u32), (4, 24), (4, u32::MAX), (6, 32), (5, 32)] {
        let mut writer = Writer::new(0, 1);
        writer.text("general.alignment").u32(kind).u32(number);
        assert!(writer.fault(1000).contains("general.alignment"), "{number}");
    }
    let mut tensor_beside = Writer::new(1, 0);
    tensor_beside.tensor("w", &[32], Q8_0, 8);
    assert!(tensor_beside.fault(1000).contains("not aligned to 32"));
}

#[test]
fn tensors_that_overlap_overflow_or_have_impossible_shapes_are_refused() {
    let one = |shape: &[u64], kind: u32, offset: u64| {
        let mut writer = Writer::new(1, 0);
        writer.tensor("w", shape, kind, offset);
        writer
    };
    let mut overlapping = Writer::new(2, 0);
    overlapping.tensor("a", &[32, 2], Q8_0, 0).tensor("b", &[32, 2], Q8_0, 32);
    let mut same_place = Writer::new(2, 0);
    same_place.tensor("a", &[32], Q8_0, 0).tensor("b", &[32], Q8_0, 0);
    let mut same_name = Writer::new(2, 0);
    same_name.tensor("a", &[32], Q8_0, 0).tensor("a", &[32], Q8_0, 64);
    let faults = [
        (overlapping, "where another one does"),
        (same_place, "where another one does"),
        (same_name, "in it twice"),
        (one(&[0, 4], 0, 0), "a dimension of 0"),
        (one(&[1 << 31, 1 << 31, 1 << 31], 0, 0), "a dimension of"),
        (one(&[1 << 60], 0, 0), "a dimension of"),
        (one(&[1, 1, 1, 1, 1], 0, 0), "5 dimensions"),
        (one(&[1 << 31, 1 << 31], 0, 0), "rows of 2147483648 in F32"),
        (one(&[1 << 31, 1 << 29], 0, 0), "truncated or damaged"),
        (one(&[32], 0, u64::MAX - 31), "truncated or damaged"),
        (one(&[40, 4], Q8_0, 0), "rows of 40 in Q8_0"),
        (one(&[128, 2], 12, 0), "rows of 128 in Q4_K"),
        (one(&[256], 23, 0), "type IQ4_XS"),
        (one(&[256], 34, 0), "type TQ1_0"),
        (one(&[256], 10, 0), "type Q2_K"),
        (one(&[256], 4242, 0), "number 4242"),
    ];
    for (writer, expected) in faults {
        let fault = writer.fault(10_000);
        assert!(fault.contains(expected), "{expected}: {fault}");
    }
}
