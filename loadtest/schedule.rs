//! When each request is to be sent and what it says.

use std::time::Duration;

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::arrivals::Arrivals;
use crate::trace::Recorded;

/// A request body for a target and what its answer must contain.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) target: String,
    pub(crate) body: Value,
    /// Every one of these; none means that any answer will do.
    pub(crate) contains: Vec<String>,
}

/// The cases of one target.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) cases: Vec<Case>,
}

/// One planned request.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) case: Case,
    /// Who asks: the place in the list of keys.
    pub(crate) tenant: Option<usize>,
}

/// Reads the cases of an expectations file, grouped by target in the file's order.
pub(crate) fn read_cases(text: &str) -> Result<Vec<Target>, String> {
    let entries: Vec<Value> =
        serde_json::from_str(text).map_err(|e| format!("expectations: {e}"))?;
    let mut targets: Vec<Target> = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let case = case_of(entry).ok_or_else(|| {
            format!("expectations[{index}]: wants target and one of body, messages, prompt, inputs")
        })?;
        match targets.iter_mut().find(|t| t.name == case.target) {
            Some(target) => target.cases.push(case),
            None => targets.push(Target { name: case.target.clone(), cases: vec![case] }),
        }
    }
    Ok(targets)
}

fn case_of(entry: &Value) -> Option<Case> {
    let target = entry.get("target")?.as_str()?.to_owned();
    // A completion's whole text, a label, or any parts; an embedding has none of them.
    let contains = match (entry.get("text"), entry.get("label"), entry.get("contains")) {
        (Some(Value::String(whole)), _, _) | (None, Some(Value::String(whole)), _) => {
            // As it stands in a JSON body.
            vec![Value::from(whole.as_str()).to_string()]
        }
        (None, None, Some(Value::Array(parts))) => {
            parts.iter().map(|part| part.as_str().map(str::to_owned)).collect::<Option<_>>()?
        }
        (None, None, None) => Vec::new(),
        _ => return None,
    };
    let body = if let Some(body) = entry.get("body") {
        body.clone()
    } else if let Some(messages) = entry.get("messages") {
        json!({"messages": messages, "temperature": 0, "max_tokens": 96})
    } else if let Some(prompt) = entry.get("prompt") {
        json!({"inputs": prompt, "parameters": {"max_new_tokens": 96}})
    } else {
        json!({"inputs": entry.get("inputs")?})
    };
    Some(Case { target, body, contains })
}

/// A text that every kind of model understands. `exact`: generative ones answer with so many tokens,
/// whether or not they would have ended before.
pub(crate) fn generic_case(target: &str, tokens: usize, exact: bool) -> Case {
    let mut body =
        json!({"inputs": "When are you open?", "parameters": {"max_new_tokens": tokens}});
    if exact {
        body["parameters"]["min_new_tokens"] = Value::from(tokens);
    }
    Case { target: target.to_owned(), body, contains: Vec::new() }
}

/// Chooses targets by Zipf's law: the k-th of a seeded permutation has weight k^-skew.
pub(crate) struct Zipf {
    order: Vec<usize>,
    cumulative: Vec<f64>,
}

impl Zipf {
    pub(crate) fn new(targets: usize, skew: f64, rng: &mut ChaCha8Rng) -> Self {
        let mut order: Vec<usize> = (0..targets).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, rng.random_range(0..=i));
        }
        let mut sum = 0.0;
        let cumulative = (1..=targets)
            .map(|rank| {
                sum += (rank as f64).powf(-skew);
                sum
            })
            .collect();
        Self { order, cumulative }
    }

    pub(crate) fn pick(&self, rng: &mut ChaCha8Rng) -> usize {
        let total = self.cumulative.last().copied().unwrap_or(0.0);
        let point = rng.random_range(0.0..total);
        self.order[self.cumulative.partition_point(|&c| c <= point).min(self.order.len() - 1)]
    }
}

/// What requests are drawn from, beside their times.
pub(crate) struct Drawn<'a> {
    pub(crate) targets: &'a [Target],
    /// Exponent of Zipf's law.
    pub(crate) skew: f64,
    /// How many tenants ask; 0: nobody says who they are.
    pub(crate) tenants: usize,
}

/// Requests at planned times, targets by Zipf's law, tenants all alike.
pub(crate) fn open_loop(
    drawn: &Drawn<'_>,
    arrivals: &Arrivals,
    duration: Duration,
    seed: u64,
) -> Vec<Planned> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let zipf = Zipf::new(drawn.targets.len(), drawn.skew, &mut rng);
    let times = arrivals.times(duration, &mut rng);
    let plan = times.into_iter().map(|at| {
        let cases = &drawn.targets[zipf.pick(&mut rng)].cases;
        let case = cases[rng.random_range(0..cases.len())].clone();
        let tenant = (drawn.tenants > 0).then(|| rng.random_range(0..drawn.tenants));
        Planned { at, case, tenant }
    });
    plan.collect()
}

/// How a trace is replayed.
pub(crate) struct Replay {
    /// Time passes so many times faster.
    pub(crate) speed: f64,
    /// Tokens of prompts and answers at most.
    pub(crate) longest: (usize, usize),
}

/// Requests of a trace: its most popular model is the first target, and so on around; where it names
/// none, targets are drawn by Zipf's law. Texts are as long as the trace says, a word for a token.
pub(crate) fn replay(
    drawn: &Drawn<'_>,
    trace: &[Recorded],
    how: &Replay,
    duration: Duration,
    seed: u64,
) -> Vec<Planned> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let zipf = Zipf::new(drawn.targets.len(), drawn.skew, &mut rng);
    let mut plan = Vec::new();
    for recorded in trace {
        let at = Duration::from_secs_f64(recorded.at / how.speed);
        if at >= duration {
            break;
        }
        let chosen = match recorded.model {
            Some(rank) => &drawn.targets[rank % drawn.targets.len()],
            None => &drawn.targets[zipf.pick(&mut rng)],
        };
        let mut case = chosen.cases[rng.random_range(0..chosen.cases.len())].clone();
        lengthen(&mut case, recorded, how.longest);
        let tenant = recorded.tenant.filter(|_| drawn.tenants > 0).map(|it| it % drawn.tenants);
        plan.push(Planned { at, case, tenant });
    }
    plan
}

/// Gives a text of one input the trace's lengths; what else a case asks stays.
fn lengthen(case: &mut Case, recorded: &Recorded, (prompt, answer): (usize, usize)) {
    if !case.contains.is_empty() || !case.body["inputs"].is_string() {
        return;
    }
    if let Some(tokens) = recorded.prompt {
        let words = vec!["open"; tokens.clamp(1, prompt)];
        case.body["inputs"] = Value::from(words.join(" "));
    }
    if let Some(tokens) = recorded.answer {
        case.body["parameters"]["max_new_tokens"] = Value::from(tokens.clamp(1, answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrivals::Shape;

    fn targets(n: usize) -> Vec<Target> {
        (0..n)
            .map(|i| Target {
                name: format!("t{i}"),
                cases: vec![generic_case(&format!("t{i}"), 24, false)],
            })
            .collect()
    }

    fn zipf(targets: &[Target], rate: f64, seed: u64) -> Vec<Planned> {
        let arrivals = Arrivals { rate, shape: Shape::Steady, period: 60.0, factor: 1.0 };
        let drawn = Drawn { targets, skew: 1.0, tenants: 3 };
        open_loop(&drawn, &arrivals, Duration::from_secs(100), seed)
    }

    #[test]
    fn a_trace_is_replayed_with_its_models_tenants_and_lengths() {
        let recorded = |at: f64, model: usize, tenant: usize, prompt: usize| Recorded {
            at,
            model: Some(model),
            tenant: Some(tenant),
            prompt: Some(prompt),
            answer: Some(900),
        };
        let trace = [recorded(0.0, 0, 0, 3), recorded(50.0, 4, 5, 500), recorded(5_000.0, 0, 0, 1)];
        let targets = targets(3);
        let drawn = Drawn { targets: &targets, skew: 1.0, tenants: 2 };
        let how = Replay { speed: 100.0, longest: (100, 16) };
        let plan = replay(&drawn, &trace, &how, Duration::from_secs(10), 1);
        assert_eq!(plan.len(), 2, "what comes after the end is left out");
        assert_eq!(plan[1].at, Duration::from_millis(500));
        assert_eq!((plan[1].case.target.as_str(), plan[1].tenant), ("t1", Some(1)));
        assert_eq!(plan[0].case.body["inputs"], "open open open");
        assert_eq!(plan[1].case.body["inputs"].as_str().unwrap().split(' ').count(), 100);
        assert_eq!(plan[1].case.body["parameters"]["max_new_tokens"], 16);
    }

    #[test]
    fn a_schedule_is_the_same_for_the_same_seed_and_has_the_rate_asked_for() {
        let a = zipf(&targets(10), 50.0, 7);
        let b = zipf(&targets(10), 50.0, 7);
        assert!(a.iter().zip(&b).all(|(x, y)| x.at == y.at && x.case.target == y.case.target));
        // Poisson: 5,000 expected, standard deviation 71.
        assert!((4_700..5_300).contains(&a.len()), "{}", a.len());
        assert!(a.windows(2).all(|w| w[0].at <= w[1].at));
    }

    #[test]
    fn the_most_popular_target_has_its_zipf_share() {
        let plan = zipf(&targets(10), 100.0, 3);
        let mut counts = std::collections::BTreeMap::new();
        for p in &plan {
            *counts.entry(p.case.target.clone()).or_insert(0usize) += 1;
        }
        let top = *counts.values().max().unwrap() as f64 / plan.len() as f64;
        // 1 / H(10) = 0.341
        assert!((0.31..0.37).contains(&top), "{top}");
    }

    #[test]
    fn expectations_are_read_in_every_form() {
        let text = r#"[{"target":"a","messages":[{"role":"user","content":"x"}],"contains":["y"]},
                       {"target":"a","inputs":"x","label":"z"},
                       {"target":"b","prompt":"x","contains":["p"],"text":"say \"p\""}]"#;
        let targets = read_cases(text).unwrap();
        assert_eq!(targets.len(), 2);
        assert_eq!(targets[0].cases.len(), 2);
        assert_eq!(targets[0].cases[1].contains, ["\"z\""]);
        assert_eq!(targets[1].cases[0].contains, [r#""say \"p\"""#]);
        assert!(read_cases(r#"[{"target":"a"}]"#).unwrap_err().contains("expectations[0]"));
    }
}
