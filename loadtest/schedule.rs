//! When each request is to be sent and what it says.

use std::time::Duration;

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

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

/// A text that every kind of model understands.
pub(crate) fn generic_case(target: &str) -> Case {
    Case {
        target: target.to_owned(),
        body: json!({"inputs": "When are you open?", "parameters": {"max_new_tokens": 24}}),
        contains: Vec::new(),
    }
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

/// Poisson arrivals at `rate` a second over `duration`, targets by Zipf's law.
pub(crate) fn open_loop(
    targets: &[Target],
    rate: f64,
    skew: f64,
    duration: Duration,
    seed: u64,
) -> Vec<Planned> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let zipf = Zipf::new(targets.len(), skew, &mut rng);
    let mut plan = Vec::new();
    let mut at = 0.0;
    loop {
        at += -(1.0 - rng.random::<f64>()).ln() / rate;
        if at >= duration.as_secs_f64() {
            return plan;
        }
        let cases = &targets[zipf.pick(&mut rng)].cases;
        let case = cases[rng.random_range(0..cases.len())].clone();
        plan.push(Planned { at: Duration::from_secs_f64(at), case });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(n: usize) -> Vec<Target> {
        (0..n)
            .map(|i| Target { name: format!("t{i}"), cases: vec![generic_case(&format!("t{i}"))] })
            .collect()
    }

    #[test]
    fn a_schedule_is_the_same_for_the_same_seed_and_has_the_rate_asked_for() {
        let a = open_loop(&targets(10), 50.0, 1.0, Duration::from_secs(100), 7);
        let b = open_loop(&targets(10), 50.0, 1.0, Duration::from_secs(100), 7);
        assert!(a.iter().zip(&b).all(|(x, y)| x.at == y.at && x.case.target == y.case.target));
        // Poisson: 5,000 expected, standard deviation 71.
        assert!((4_700..5_300).contains(&a.len()), "{}", a.len());
        assert!(a.windows(2).all(|w| w[0].at <= w[1].at));
    }

    #[test]
    fn the_most_popular_target_has_its_zipf_share() {
        let plan = open_loop(&targets(10), 100.0, 1.0, Duration::from_secs(100), 3);
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
