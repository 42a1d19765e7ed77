//! Tasks of encoders: what reaches the model and how its answers are written, in which types of
//! bodies.

use roundhouse_serving::{
    Aggregation, Answer, EmbeddingsReply, Entity, Fill, Inputs, LabelScore, Prompt, Reply,
    Request as Asked, ScoreFunction, ScoresReply, SpanAnswer, TokenVectorsReply, VectorTask,
};
use roundhouse_types::{Failure, ModelKind};
use serde_json::{Value, json};

use crate::support::*;

const INVOKE: &str = "/endpoints/ep/invocations";
const PLAIN: &str = "/invocations";

fn replies(reply: Reply) -> Result<Answer, Failure> {
    Ok(Answer { reply, served: served(ModelKind::Classification) })
}

/// A harness whose model finds the same in each input.
fn finds(reply: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Harness {
    Setup::default().with(move |invocation| {
        let count = match &invocation.request {
            Asked::Inputs(inputs) => inputs.texts.len(),
            Asked::Ranking(ranking) => ranking.documents.len(),
            Asked::Embeddings(embeddings) => embeddings.inputs.len(),
            _ => panic!("not for encoders"),
        };
        replies(reply(count))
    })
}

fn labels(count: usize) -> Reply {
    let label = |name: &str, score| LabelScore { label: name.into(), score };
    Reply::Classification(vec![vec![label("good", 0.75), label("bad", 0.25)]; count])
}

async fn sent(harness: &Harness, path: &str, body: &str, headers: &[(&'static str, &str)]) -> Got {
    let mut request = post(path, "a", body.to_owned());
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    harness.send(request).await
}

/// The inputs that reached the model last.
fn last_inputs(harness: &Harness) -> Inputs {
    match harness.asked.lock().unwrap().pop().unwrap().request {
        Asked::Inputs(inputs) => inputs,
        _ => panic!("not inputs"),
    }
}

#[tokio::test]
async fn an_answer_is_written_in_the_type_that_is_accepted() {
    let harness = finds(labels);
    let body = r#"{"inputs":["x","y"]}"#;
    for (accept, kind, want) in [
        (
            "application/json",
            "application/json",
            r#"[{"label":"good","score":0.75},{"label":"good","score":0.75}]"#,
        ),
        (
            "application/jsonlines",
            "application/jsonlines",
            "{\"label\":\"good\",\"score\":0.75}\n{\"label\":\"good\",\"score\":0.75}\n",
        ),
        ("text/csv", "text/csv; charset=utf-8", "label,score\ngood,0.75\ngood,0.75\n"),
        // What holds numbers alone cannot hold labels.
        (
            "application/x-npy, text/csv;q=0.5",
            "text/csv; charset=utf-8",
            "label,score\ngood,0.75\ngood,0.75\n",
        ),
    ] {
        let got = sent(&harness, PLAIN, body, &[("accept", accept)]).await;
        assert_eq!((got.header("content-type"), got.text().as_str()), (kind, want), "{accept}");
    }
    let lists = r#"{"inputs":["x","y"],"parameters":{"top_k":2}}"#;
    let got = sent(&harness, PLAIN, lists, &[("accept", "text/csv")]).await;
    assert_eq!(got.text(), "input,label,score\n0,good,0.75\n0,bad,0.25\n1,good,0.75\n1,bad,0.25\n");
}

#[tokio::test]
async fn a_type_that_no_answer_has_is_refused_before_the_model_is_asked() {
    let harness = finds(labels);
    let headers = [("accept", "image/png"), ("x-amzn-sagemaker-accept", "image/png")];
    for (path, status, name) in [
        (INVOKE, 424, "ModelError"),
        (PLAIN, 406, "ModelError"),
        ("/endpoints/ep/invocations-response-stream", 424, "ModelError"),
    ] {
        let got = sent(&harness, path, r#"{"inputs":"x"}"#, &headers).await;
        assert_eq!((got.status.as_u16(), got.header("x-amzn-errortype")), (status, name), "{path}");
        assert!(got.text().contains("Accept header"), "{}", got.text());
    }
    assert!(harness.asked.lock().unwrap().is_empty());
    // Known only when the answer is there.
    let got = sent(&harness, PLAIN, r#"{"inputs":"x"}"#, &[("accept", "application/x-npy")]).await;
    assert_eq!(got.status, 406);
}

#[tokio::test]
async fn routes_of_text_embeddings_inference_ask_one_kind_of_model_and_answer_lists() {
    let vectors = |count| {
        Reply::Embeddings(EmbeddingsReply { vectors: vec![vec![0.5]; count], prompt_tokens: 1 })
    };
    let harness = finds(vectors);
    let got = harness.post("/embed", "a", r#"{"inputs":"x","prompt_name":"query"}"#).await;
    assert_eq!(got.json(), json!([[0.5]]));
    let asked = last_inputs(&harness);
    assert_eq!((asked.only, asked.normalize), (Some(ModelKind::Embedding), Some(true)));
    assert_eq!(asked.options.prompt.as_deref(), Some("query"));
    let body = r#"{"inputs":["x","y"],"normalize":false}"#;
    assert_eq!(harness.post("/embed", "a", body).await.json(), json!([[0.5], [0.5]]));
    assert_eq!(last_inputs(&harness).normalize, Some(false));
    harness.post("/embed_all", "a", r#"{"inputs":"x"}"#).await;
    let asked = last_inputs(&harness);
    assert_eq!((asked.only, asked.options.task), (Some(ModelKind::Embedding), VectorTask::Tokens));

    let harness = finds(labels);
    let both = json!([{"label": "good", "score": 0.75}, {"label": "bad", "score": 0.25}]);
    for (inputs, texts, pair, want) in [
        (json!("x"), 1, None, both.clone()),
        (json!(["x"]), 1, None, both.clone()),
        (json!(["x", "y"]), 1, Some("y"), both.clone()),
        (json!([["x"], ["y", "z"]]), 2, Some("z"), json!([both, both])),
    ] {
        let body = json!({"inputs": inputs, "raw_scores": true}).to_string();
        assert_eq!(harness.post("/predict", "a", body).await.json(), want, "{inputs}");
        let asked = last_inputs(&harness);
        assert_eq!((asked.only, asked.texts.len()), (Some(ModelKind::Classification), texts));
        assert_eq!(asked.seconds.last().cloned().flatten().as_deref(), pair, "{inputs}");
        assert_eq!(asked.options.function, Some(ScoreFunction::Identity));
    }
    for inputs in [json!([]), json!(["x", "y", "z"]), json!([["x"], []]), json!(5), json!([1])] {
        let got = harness.post("/predict", "a", json!({"inputs": inputs}).to_string()).await;
        assert_eq!((got.status.as_u16(), &got.json()["error_type"]), (422, &json!("validation")));
    }

    let harness =
        finds(|count| Reply::Scores(ScoresReply { scores: vec![0.25; count], prompt_tokens: 1 }));
    let body = r#"{"inputs":{"source_sentence":"q","sentences":["x","y"]}}"#;
    assert_eq!(harness.post("/similarity", "a", body).await.json(), json!([0.25, 0.25]));
    assert_eq!(harness.post("/similarity", "a", r#"{"inputs":"x"}"#).await.status, 422);
}

#[tokio::test]
async fn where_handlers_may_answer_types_count_for_our_models_alone() {
    let setup = Setup { handlers: true, ..Setup::default() };
    let harness = setup.with_async(std::sync::Arc::new(|invocation| {
        use futures_util::FutureExt;
        async move {
            let Asked::Raw(raw) = invocation.request else { panic!("it was read") };
            assert_eq!(raw.body.accept.as_deref(), Some("image/png"));
            (raw.read)(raw.body.body).await?;
            replies(labels(1))
        }
        .boxed()
    }));
    let got = sent(&harness, PLAIN, r#"{"inputs":"x"}"#, &[("accept", "image/png")]).await;
    assert_eq!(got.status, 406, "{}", got.text());
}

#[tokio::test]
async fn vectors_are_written_as_tables_and_arrays() {
    let harness = finds(|count| {
        let vectors = vec![vec![0.5, -2.0]; count];
        Reply::Embeddings(roundhouse_serving::EmbeddingsReply { vectors, prompt_tokens: 2 })
    });
    let body = r#"{"inputs":["x","y"]}"#;
    let got = sent(&harness, PLAIN, body, &[("accept", "text/csv")]).await;
    assert_eq!(got.text(), "0.5,-2\n0.5,-2\n");
    let got = sent(&harness, PLAIN, body, &[("accept", "application/jsonlines")]).await;
    assert_eq!(got.text(), "[0.5,-2.0]\n[0.5,-2.0]\n");
    let got = sent(&harness, PLAIN, body, &[("accept", "application/x-npy")]).await;
    assert_eq!(got.header("content-type"), "application/x-npy");
    assert!(String::from_utf8_lossy(&got.body).contains("'shape': (2, 2), }"));
    assert_eq!(
        got.body[got.body.len() - 8..],
        [0.5_f32.to_le_bytes(), (-2.0_f32).to_le_bytes()].concat()
    );
}

#[tokio::test]
async fn bodies_of_other_types_are_inputs_too() {
    let harness = finds(labels);
    let csv = [("content-type", "text/csv")];
    assert_eq!(sent(&harness, PLAIN, "inputs\na\n\"b, c\"\n", &csv).await.status, 200);
    let inputs = last_inputs(&harness);
    assert_eq!((inputs.texts, inputs.single), (vec!["a".into(), "b, c".into()], false));
    let got = sent(&harness, PLAIN, "question,context\nwho?,he\n", &csv).await;
    assert_eq!(got.status, 200, "{}", got.text());
    let inputs = last_inputs(&harness);
    assert_eq!((inputs.texts, inputs.seconds), (vec!["who?".into()], vec![Some("he".into())]));
    let got = sent(&harness, PLAIN, "candidate_labels,inputs\na,b", &csv).await;
    assert_eq!(got.status, 400, "{}", got.text());
    assert!(got.text().contains("first row of the CSV"), "{}", got.text());

    let lines = [("content-type", "application/jsonlines")];
    let body = "{\"inputs\":\"a\",\"parameters\":{\"top_k\":2}}\n\"b\"\n";
    assert_eq!(sent(&harness, PLAIN, body, &lines).await.json().as_array().unwrap().len(), 2);
    let inputs = last_inputs(&harness);
    assert_eq!((inputs.texts, inputs.top_k), (vec!["a".into(), "b".into()], Some(2)));

    let npy = [("content-type", "application/x-npy")];
    let header = "{'descr': '|u1', 'fortran_order': False, 'shape': (2, 2), }\n";
    let mut body = b"\x93NUMPY\x01\x00".to_vec();
    body.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    body.extend(header.bytes().chain([1, 2, 3, 4]));
    let mut request = post(PLAIN, "a", body);
    request.headers_mut().insert("content-type", npy[0].1.parse().unwrap());
    harness.send(request).await;
    let asked = harness.asked.lock().unwrap().pop().unwrap();
    let Asked::Embeddings(asked) = asked.request else { panic!("no tokens to embed") };
    assert_eq!(asked.inputs, [Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3, 4])]);
}

#[tokio::test]
async fn parameters_reach_the_task_that_heeds_them() {
    let harness = finds(labels);
    let body = json!({"inputs": "x", "normalize": true, "dimensions": 8, "truncate": true, "parameters": {
        "function_to_apply": "sigmoid", "aggregation_strategy": "first", "ignore_labels": [],
        "stride": 4, "targets": "a", "max_answer_len": 3, "max_seq_len": 64, "doc_stride": 8,
        "handle_impossible_answer": true, "align_to_words": false,
        "candidate_labels": "a, b", "multi_label": true, "hypothesis_template": "so {}",
    }});
    let got = harness.post(PLAIN, "a", body.to_string()).await;
    assert_eq!((got.status.as_u16(), got.header("x-roundhouse-ignored")), (200, ""));
    let inputs = last_inputs(&harness);
    let options = inputs.options;
    assert_eq!((inputs.normalize, options.dimensions), (Some(true), Some(8)));
    assert_eq!(options.function, Some(ScoreFunction::Sigmoid));
    assert_eq!(options.entities.aggregation, Aggregation::First);
    assert_eq!((options.entities.ignored.len(), options.entities.stride), (0, Some(4)));
    assert_eq!(options.targets, Some(vec!["a".into()]));
    let answers = options.answers;
    assert_eq!((answers.max_answer_len, answers.max_seq_len), (3, Some(64)));
    assert_eq!((answers.doc_stride, answers.align_to_words), (Some(8), false));
    let zero_shot = options.zero_shot.unwrap();
    assert_eq!((zero_shot.labels, zero_shot.multi_label), (vec!["a".into(), "b".into()], true));
    assert_eq!(zero_shot.template, "so {}");
    let body = r#"{"inputs":"x","task":"feature-extraction"}"#;
    harness.post(PLAIN, "a", body).await;
    assert_eq!(last_inputs(&harness).options.task, VectorTask::Tokens);
    for (wrong, field) in [
        (r#"{"inputs":"x","parameters":{"function_to_apply":"tanh"}}"#, "function_to_apply"),
        (r#"{"inputs":"x","parameters":{"aggregation_strategy":"some"}}"#, "aggregation_strategy"),
        (r#"{"inputs":"x","parameters":{"stride":1}}"#, "stride"),
        (r#"{"inputs":"x","parameters":{"candidate_labels":[]}}"#, "candidate_labels"),
        (r#"{"inputs":"x","task":"translation"}"#, "task"),
        (r#"{"inputs":"x","truncate":false}"#, "truncate"),
        (r#"{"inputs":{"question":"x"}}"#, "inputs"),
        (r#"{"inputs":[{"text":"x","more":1}]}"#, "inputs"),
        (r#"{"inputs":{"source_sentence":"x","sentences":[]}}"#, "inputs.sentences"),
    ] {
        let got = harness.post(PLAIN, "a", wrong).await;
        assert_eq!(got.status, 400, "{wrong}");
        assert!(got.text().contains(field), "{wrong}: {}", got.text());
    }
}

#[tokio::test]
async fn what_was_found_takes_the_shapes_of_the_pipelines() {
    let entity = |index| Entity {
        label: "PER".into(),
        score: 0.5,
        word: "keeper".into(),
        start: 4,
        end: 10,
        index,
    };
    let harness =
        finds(move |count| Reply::Entities(vec![vec![entity(Some(2)), entity(None)]; count]));
    let one = json!([
        {"entity": "PER", "score": 0.5, "index": 2, "word": "keeper", "start": 4, "end": 10},
        {"entity_group": "PER", "score": 0.5, "word": "keeper", "start": 4, "end": 10},
    ]);
    assert_eq!(harness.post(PLAIN, "a", r#"{"inputs":"x"}"#).await.json(), one);
    assert_eq!(harness.post(PLAIN, "a", r#"{"inputs":["x"]}"#).await.json(), json!([one]));

    let fill = Fill { score: 0.5, token: 7, token_str: "a".into(), sequence: "a b".into() };
    let told = json!({"score": 0.5, "token": 7, "token_str": "a", "sequence": "a b"});
    for (masks, want) in [(1, json!([told])), (2, json!([[told], [told]]))] {
        let fills = vec![vec![fill.clone()]; masks];
        let harness = finds(move |count| Reply::Fills(vec![fills.clone(); count]));
        assert_eq!(harness.post(PLAIN, "a", r#"{"inputs":"x"}"#).await.json(), want);
        let two = harness.post(PLAIN, "a", r#"{"inputs":["x","y"]}"#).await.json();
        assert_eq!(two, json!([want, want]));
    }

    let answer = SpanAnswer { score: 0.5, start: 1, end: 3, answer: "he".into() };
    let told = json!({"score": 0.5, "start": 1, "end": 3, "answer": "he"});
    let question = r#"{"inputs":{"question":"who?","context":"the"}}"#;
    for (answers, want) in [(1, told.clone()), (2, json!([told, told]))] {
        let answers = vec![answer.clone(); answers];
        let harness = finds(move |count| Reply::Answers(vec![answers.clone(); count]));
        assert_eq!(harness.post(PLAIN, "a", question).await.json(), want);
    }

    let harness = finds(|count| {
        let inputs = vec![vec![vec![0.5, 1.0], vec![2.0, 3.0]]; count];
        Reply::TokenVectors(TokenVectorsReply { inputs, prompt_tokens: 2 })
    });
    let body = r#"{"inputs":"x","task":"feature-extraction"}"#;
    assert_eq!(harness.post(PLAIN, "a", body).await.text(), "[[[0.5,1.0],[2.0,3.0]]]");
    let got = sent(&harness, PLAIN, body, &[("accept", "application/x-npy")]).await;
    assert!(String::from_utf8_lossy(&got.body).contains("'shape': (1, 2, 2), }"));
    let got = sent(&harness, PLAIN, body, &[("accept", "text/csv")]).await;
    assert_eq!(got.status, 406);
    for field in ["adapters", "parameters.adapters"] {
        let body = match field {
            "adapters" => json!({"inputs": ["x", "y"], "adapters": ["z", ""]}),
            _ => json!({"inputs": ["x", "y"], "parameters": {"adapters": ["z", ""]}}),
        };
        let got = harness.post(PLAIN, "a", body.to_string()).await;
        let says = format!("{field} must be one name where tokens are answered");
        assert_eq!((got.status.as_u16(), got.json()["Message"].as_str()), (400, Some(&*says)));
    }
}

#[tokio::test]
async fn labels_have_the_shapes_of_pipeline_toolkit_and_inference_api() {
    let harness = finds(labels);
    let (good, bad) =
        (json!({"label": "good", "score": 0.75}), json!({"label": "bad", "score": 0.25}));
    let pair = r#"{"inputs":{"text":"x","text_pair":"y"}}"#;
    assert_eq!(harness.post(PLAIN, "a", pair).await.json(), good);
    let all = r#"{"inputs":"x","parameters":{"return_all_scores":true}}"#;
    assert_eq!(harness.post(PLAIN, "a", all).await.json(), json!([[good, bad]]));
    assert!(last_inputs(&harness).options.in_order);
    let zero_shot = r#"{"inputs":"x","parameters":{"candidate_labels":["good","bad"]}}"#;
    let object = json!({"sequence": "x", "labels": ["good", "bad"], "scores": [0.75, 0.25]});
    assert_eq!(harness.post(PLAIN, "a", zero_shot).await.json(), object);
    let list = r#"{"inputs":["x"],"parameters":{"candidate_labels":["good","bad"]}}"#;
    assert_eq!(harness.post(PLAIN, "a", list).await.json(), json!([object]));
    // The Hugging Face client reads these.
    assert_eq!(harness.post("/", "a", r#"{"inputs":"x"}"#).await.json(), json!([[good, bad]]));
    assert_eq!(harness.post("/", "a", zero_shot).await.json(), json!([good, bad]));
}

fn scores() -> Harness {
    finds(|count| {
        let scores = [0.25, 0.75, 0.5].into_iter().cycle().take(count).collect();
        Reply::Scores(ScoresReply { scores, prompt_tokens: 12 })
    })
}

#[tokio::test]
async fn documents_come_back_best_first_in_every_dialect() {
    let harness = scores();
    let body = json!({
        "model": "a", "query": "q", "documents": ["x", {"text": "y"}, "z"], "top_n": 2,
        "return_documents": true,
    });
    let got = harness.post("/v1/rerank", "", body.to_string()).await.json();
    assert_eq!(got["model"], "a");
    assert_eq!(got["usage"], json!({"prompt_tokens": 12, "total_tokens": 12}));
    assert_eq!(
        got["results"],
        json!([
            {"index": 1, "relevance_score": 0.75, "document": {"text": "y"}},
            {"index": 2, "relevance_score": 0.5, "document": {"text": "z"}},
        ])
    );
    let tei = r#"{"query":"q","texts":["x","y"],"raw_scores":true,"return_text":true}"#;
    let want = json!([
        {"index": 1, "text": "y", "score": 0.75}, {"index": 0, "text": "x", "score": 0.25},
    ]);
    for path in ["/rerank", PLAIN, INVOKE] {
        assert_eq!(harness.post(path, "a", tei).await.json(), want, "{path}");
        let asked = harness.asked.lock().unwrap().pop().unwrap();
        assert!(matches!(asked.request, Asked::Ranking(ranking) if ranking.raw));
    }
    let score = r#"{"model":"a","text_1":"q","text_2":["x","y"]}"#;
    let got = harness.post("/v1/score", "", score).await.json();
    assert_eq!(got["data"][1], json!({"index": 1, "object": "score", "score": 0.75}));
    let similar = r#"{"inputs":{"source_sentence":"q","sentences":["x","y"]}}"#;
    assert_eq!(harness.post(PLAIN, "a", similar).await.json(), json!([0.25, 0.75]));
    let got = sent(&harness, PLAIN, similar, &[("accept", "text/csv")]).await;
    assert_eq!(got.text(), "0.25,0.75\n");
}

#[tokio::test]
async fn a_wrong_ranking_is_refused_with_its_field() {
    let harness = scores();
    for (extra, field) in [
        (json!({"documents": []}), "documents"),
        (json!({"documents": [{"text": "x", "image": "y"}]}), "documents"),
        (json!({"query": 7}), "query"),
        (json!({"top_n": 0}), "top_n"),
        (json!({"rank_fields": ["a"]}), "rank_fields"),
        (json!({"texts": [1]}), "texts"),
    ] {
        let mut body = json!({"model": "a", "query": "q", "documents": ["x"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let got = harness.post("/v1/rerank", "", body.to_string()).await;
        assert_eq!(got.status, 400, "{body}");
        assert_eq!(got.json()["error"]["param"], field, "{body}");
        let got: Value = harness.post("/rerank", "a", body.to_string()).await.json();
        assert_eq!(got["error_type"], "validation", "{body}");
    }
}
