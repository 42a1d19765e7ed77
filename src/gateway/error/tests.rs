use std::fmt::Write as _;

use axum::body::to_bytes;

use super::*;

const KINDS: [ErrorKind; 16] = [
    ErrorKind::InvalidRequest,
    ErrorKind::InvalidInput,
    ErrorKind::PayloadTooLarge,
    ErrorKind::UnsupportedMediaType,
    ErrorKind::EndpointNotFound,
    ErrorKind::ModelNotFound,
    ErrorKind::StoreDenied,
    ErrorKind::ModelInvalid,
    ErrorKind::TooLarge,
    ErrorKind::NotReady,
    ErrorKind::Overloaded,
    ErrorKind::Throttled,
    ErrorKind::StoreUnavailable,
    ErrorKind::ModelFailed,
    ErrorKind::TimedOut,
    ErrorKind::Internal,
];
const FACES: [Face; 4] = [Face::Endpoint, Face::Invocations, Face::Container, Face::OpenAi];

#[test]
fn the_whole_table() {
    let mut cases: Vec<Error> =
        KINDS.iter().map(|kind| Failure::new(*kind, "why").into()).collect();
    cases.extend([
        Error::field("parameters.top_p", "is wrong"),
        Error::UnknownPath,
        Error::WrongMethod,
        Error::SlowBody(Duration::from_secs(30)),
        Error::AlreadyLoaded("model m is already loaded".into()),
        Error::NoMemory("model m".into()),
    ]);
    let mut table = String::new();
    for face in FACES {
        writeln!(table, "{face:?}").unwrap();
        for case in &cases {
            let name = match case {
                Error::Failed(failure) => format!("{:?}", failure.kind()),
                other => format!("{other:?}").split(['(', ' ']).next().unwrap().to_owned(),
            };
            let row = row(face, case.case());
            writeln!(table, "  {name}: {} {} {}", row.status, row.name, case.object(face)).unwrap();
        }
    }
    insta::assert_snapshot!(table);
}

#[tokio::test]
async fn every_face_says_when_to_come_back() {
    for face in FACES {
        let failure = Failure::new(ErrorKind::NotReady, "loading")
            .with_retry(RetryHint::After(Duration::from_millis(1500)));
        let response = Error::Failed(failure).respond(face);
        assert_eq!(response.headers()["retry-after"], "2", "{face:?}");
        assert_eq!(response.headers()["x-amz-retry-after"], "1500", "{face:?}");
        assert_eq!(response.headers()["content-type"], "application/json", "{face:?}");
        let response = Error::from(Failure::new(ErrorKind::NotReady, "loading")).respond(face);
        assert!(!response.headers().contains_key("retry-after"), "{face:?}");
    }
}

#[tokio::test]
async fn long_messages_are_cut_at_a_character() {
    for face in FACES {
        let failure = Failure::new(ErrorKind::ModelFailed, "é".repeat(5000));
        let body =
            to_bytes(Error::Failed(failure).respond(face).into_body(), 1 << 20).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        let texts = ["/Message", "/OriginalMessage", "/message", "/error/message"];
        let found: Vec<&str> = texts.iter().filter_map(|at| body.pointer(at)?.as_str()).collect();
        assert!(!found.is_empty(), "{face:?}");
        for text in found {
            assert_eq!(text.chars().count(), MESSAGE_MAX, "{face:?}");
        }
    }
}
