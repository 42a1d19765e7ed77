//! Answers that hold on to something until they have gone out.

use axum::body::{Body, HttpBody};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::CONTENT_LENGTH;

/// What is handed on at once: the server takes the next piece when it has sent what it holds, so all
/// but a few of them are given back only as fast as the client reads.
const PIECE: usize = 64 * 1024;

/// The same response; `kept` is dropped with the last piece of its body. What fits one piece keeps
/// nothing.
pub(crate) fn until_sent<T: Send + 'static>(response: Response, kept: T) -> Response {
    let (mut parts, body) = response.into_parts();
    let Some(length) = body.size_hint().exact().filter(|length| *length > PIECE as u64) else {
        return Response::from_parts(parts, body);
    };
    parts.headers.insert(CONTENT_LENGTH, length.into());
    let pieces = body.into_data_stream().flat_map(|chunk| match chunk {
        Ok(chunk) => stream::iter(pieces(chunk)).map(Ok).left_stream(),
        Err(error) => stream::iter([Err(error)]).right_stream(),
    });
    let held = stream::unfold((Box::pin(pieces), kept), async |(mut pieces, kept)| {
        let piece = pieces.next().await?;
        Some((piece, (pieces, kept)))
    });
    Response::from_parts(parts, Body::from_stream(held))
}

fn pieces(mut chunk: Bytes) -> impl Iterator<Item = Bytes> {
    std::iter::from_fn(move || {
        let length = chunk.len().min(PIECE);
        (length > 0).then(|| chunk.split_to(length))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn what_is_kept_goes_with_the_last_piece_of_a_long_answer() {
        let text: Vec<u8> = (0..300_000_u32).map(|at| at as u8).collect();
        let kept = Arc::new(());
        let response = until_sent(Response::new(Body::from(text.clone())), kept.clone());
        assert_eq!(response.headers()[CONTENT_LENGTH], "300000");
        let mut body = response.into_body();
        let mut read = Vec::new();
        while let Some(frame) = body.frame().await {
            let piece = frame.unwrap().into_data().unwrap();
            assert!(piece.len() <= PIECE);
            read.extend_from_slice(&piece);
            assert_eq!(Arc::strong_count(&kept), 2, "it is still being sent");
        }
        assert_eq!((read == text, Arc::strong_count(&kept)), (true, 1));
        let short = until_sent(Response::new(Body::from("short")), kept.clone());
        assert_eq!((Arc::strong_count(&kept), short.headers().len()), (1, 0));
    }
}
