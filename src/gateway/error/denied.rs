//! What a caller is told who is not let in: the table's rows and the words of each face.

use roundhouse_tenancy::Denied;

use super::{Face, Row, amazon, openai};

/// Why somebody is not let in, as far as statuses differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    Missing,
    Unknown,
    Expired,
    Signature,
    Incomplete,
    Forbidden,
    Unavailable,
}

impl From<&Denied> for Gate {
    fn from(denied: &Denied) -> Self {
        match denied {
            Denied::Missing => Self::Missing,
            // AWS has no word for tokens of others, and the remedy is the same.
            Denied::Unknown | Denied::Token(_) => Self::Unknown,
            Denied::Expired => Self::Expired,
            Denied::Signature(_) => Self::Signature,
            Denied::Incomplete(_) => Self::Incomplete,
            Denied::Forbidden(_) => Self::Forbidden,
            Denied::Unavailable => Self::Unavailable,
        }
    }
}

/// AWS's common errors; its SDKs show the names.
pub(super) fn amazon_row(gate: Gate) -> Row {
    match gate {
        Gate::Missing => amazon(403, "MissingAuthenticationTokenException"),
        Gate::Unknown => amazon(403, "UnrecognizedClientException"),
        Gate::Expired => amazon(403, "ExpiredTokenException"),
        Gate::Signature => amazon(403, "InvalidSignatureException"),
        Gate::Incomplete => amazon(403, "IncompleteSignatureException"),
        Gate::Forbidden => amazon(403, "AccessDeniedException"),
        Gate::Unavailable => amazon(503, "ServiceUnavailable"),
    }
}

pub(super) fn container_row(gate: Gate) -> Row {
    match gate {
        Gate::Forbidden => amazon(403, "AccessDeniedException"),
        Gate::Unavailable => amazon(503, "ServiceUnavailableException"),
        Gate::Missing | Gate::Unknown | Gate::Expired | Gate::Signature | Gate::Incomplete => {
            amazon(401, "UnauthorizedException")
        }
    }
}

/// text-generation-inference asks nobody; its clients know 401 from the proxies before it.
pub(super) fn tgi_row(gate: Gate) -> Row {
    match gate {
        Gate::Forbidden => amazon(403, "forbidden"),
        Gate::Unavailable => amazon(503, "identity_unavailable"),
        Gate::Missing | Gate::Unknown | Gate::Expired | Gate::Signature | Gate::Incomplete => {
            amazon(401, "unauthorized")
        }
    }
}

/// 401 is what the OpenAI clients raise as `AuthenticationError`.
pub(super) fn openai_row(gate: Gate) -> Row {
    match gate {
        Gate::Forbidden => openai(403, "permission_error", "access_denied"),
        Gate::Unavailable => openai(503, "server_error", "identity_unavailable"),
        Gate::Missing | Gate::Unknown | Gate::Expired | Gate::Signature | Gate::Incomplete => {
            openai(401, "invalid_request_error", "invalid_api_key")
        }
    }
}

/// The words of a face: AWS's own, or what helps whoever has no AWS client before them.
pub(super) fn words(denied: &Denied, face: Face) -> String {
    match (face, denied) {
        (Face::Endpoint | Face::Invocations, denied) => denied.to_string(),
        (_, Denied::Missing) => {
            "no API key was given: send it as Authorization: Bearer KEY".to_owned()
        }
        (_, Denied::Unknown) => "the API key is not known".to_owned(),
        (_, Denied::Expired) => "the API key or token is expired".to_owned(),
        (_, denied) => denied.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Error;
    use super::*;

    fn table(denied: &Denied, face: Face) -> (u16, &'static str, Option<&'static str>, String) {
        let error = Error::from(denied.clone());
        let row = error.row(face);
        let object = error.object(face);
        let texts = ["/Message", "/message", "/error/message", "/error"];
        let text = texts.iter().find_map(|at| object.pointer(at)?.as_str()).unwrap();
        (row.status, row.name, row.code, text.to_owned())
    }

    #[test]
    fn each_face_refuses_in_its_own_words() {
        let wrong = Denied::Signature("Signature expired: …".to_owned());
        let cases = [
            (Denied::Missing, 403, "MissingAuthenticationTokenException", 401),
            (Denied::Unknown, 403, "UnrecognizedClientException", 401),
            (Denied::Expired, 403, "ExpiredTokenException", 401),
            (wrong, 403, "InvalidSignatureException", 401),
            (Denied::Incomplete("x".into()), 403, "IncompleteSignatureException", 401),
            (Denied::Token("is malformed".into()), 403, "UnrecognizedClientException", 401),
            (Denied::Forbidden("x".into()), 403, "AccessDeniedException", 403),
            (Denied::Unavailable, 503, "ServiceUnavailable", 503),
        ];
        for (denied, amazon, name, plain) in cases {
            for face in [Face::Endpoint, Face::Invocations] {
                let (status, found, _, text) = table(&denied, face);
                assert_eq!((status, found, text), (amazon, name, denied.to_string()), "{denied:?}");
            }
            let (status, _, code, text) = table(&denied, Face::OpenAi);
            assert_eq!(status, plain, "{denied:?}");
            assert_eq!(code == Some("invalid_api_key"), status == 401, "{denied:?}");
            assert!(!text.is_empty());
            assert_eq!(table(&denied, Face::Container).0, plain, "{denied:?}");
            assert_eq!(table(&denied, Face::Tgi).0, plain, "{denied:?}");
        }
    }

    #[test]
    fn a_401_says_what_is_asked_for() {
        let said = |face| {
            let response = Error::from(Denied::Missing).respond(face);
            response.headers().get("www-authenticate").cloned()
        };
        assert_eq!(said(Face::OpenAi).unwrap(), "Bearer");
        assert_eq!(said(Face::Endpoint), None);
    }
}
