use super::*;

const LIMIT: usize = 1000;

fn framed(kind: u8, rest: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    out.put_u32_le(rest.len() as u32 + 1);
    out.put_u8(kind);
    out.put_slice(rest);
    out
}

fn answer(status: u16, content_type: &str, meta: &str, body: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    rest.put_u64_le(7);
    rest.put_u16_le(status);
    rest.put_u16_le(content_type.len() as u16);
    rest.put_u32_le(meta.len() as u32);
    rest.put_slice(content_type.as_bytes());
    rest.put_slice(meta.as_bytes());
    rest.put_slice(body);
    rest
}

#[test]
fn a_frame_is_taken_when_its_last_byte_is_there() {
    let whole = framed(ANSWER, &answer(201, "text/csv", r#"{"headers":{"a":"b","n":1}}"#, b"1,2"));
    let mut read = BytesMut::new();
    for byte in &whole[..whole.len() - 1] {
        read.put_u8(*byte);
        assert_eq!(next(&mut read, LIMIT), Ok(None));
    }
    read.put_u8(whole[whole.len() - 1]);
    let headers = vec![("a".into(), "b".into()), ("n".into(), "1".into())];
    let head = Head { status: 201, content_type: "text/csv".into(), headers };
    let expected = Frame::Answer { id: 7, head, body: Bytes::from_static(b"1,2") };
    assert_eq!(next(&mut read, LIMIT), Ok(Some(expected)));
    assert!(read.is_empty());
}

#[test]
fn frames_that_are_none_are_refused() {
    let mut endless = BytesMut::new();
    endless.put_u32_le(u32::MAX);
    let mut lying = answer(200, "", "", b"");
    lying[12] = 0xff;
    let cases = [
        endless,
        BytesMut::from(&[0, 0, 0, 0][..]),
        framed(99, b""),
        framed(READY, b"{}"),
        framed(END, b"short"),
        framed(ERROR, &[0; 9]),
        framed(ANSWER, &lying),
    ];
    for mut case in cases {
        assert!(next(&mut case, LIMIT).is_err(), "{case:?}");
    }
}

#[test]
fn an_invocation_has_its_parts_in_order() {
    let mut out = BytesMut::new();
    let call = Invoke {
        id: 3,
        stream: true,
        content_type: "text/csv",
        accept: "*/*",
        meta: "{}",
        body: b"1,2\n",
    };
    call.write(&mut out);
    write_cancel(3, &mut out);
    let length = out.get_u32_le() as usize;
    let mut frame = out.split_to(length);
    assert_eq!((frame.get_u8(), frame.get_u64_le(), frame.get_u8()), (INVOKE, 3, 1));
    assert_eq!((frame.get_u16_le(), frame.get_u16_le(), frame.get_u32_le()), (8, 3, 2));
    assert_eq!(&frame[..], b"text/csv*/*{}1,2\n");
    assert_eq!((out.get_u32_le(), out.get_u8(), out.get_u64_le()), (9, CANCEL, 3));
}
