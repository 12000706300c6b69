//! The inputs of a run: what a person gave, checked, with defaults filled in.

use crate::config::pipeline::{Input, InputKind, Pipeline};
use std::collections::BTreeMap;

/// Checks what was given for a manual run and fills in the rest.
///
/// # Errors
/// Everything that is wrong, a sentence each without a full stop.
pub fn check(pipeline: &Pipeline, given: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Vec<String>> {
    let inputs = declared(pipeline);
    let mut wrong = Vec::new();
    for name in given.keys() {
        if !inputs.iter().any(|input| input.name == *name) {
            let known: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
            let known =
                if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
            wrong.push(format!("the pipeline `{}` has no input `{}`: {known}", pipeline.name, name.escape_debug()));
        }
    }
    let mut values = BTreeMap::new();
    for input in inputs {
        match given.get(&input.name) {
            Some(value) => {
                if let Err(right) = input.kind.check(value) {
                    wrong.push(format!("the input `{}` must be {right}", input.name));
                }
                values.insert(input.name.clone(), value.clone());
            }
            None if input.required && input.default.is_none() => {
                wrong.push(format!("the input `{}` must be given", input.name));
            }
            None => {
                values.insert(input.name.clone(), unset(input));
            }
        }
    }
    if wrong.is_empty() { Ok(values) } else { Err(wrong) }
}

/// The inputs of a run that no person started: every default, and an empty text (`false` for a boolean) without one.
pub fn defaults(pipeline: &Pipeline) -> BTreeMap<String, String> {
    declared(pipeline).iter().map(|input| (input.name.clone(), unset(input))).collect()
}

fn declared(pipeline: &Pipeline) -> &[Input] {
    pipeline.on.manual.as_ref().map_or(&[], |manual| &manual.inputs)
}

fn unset(input: &Input) -> String {
    match (&input.default, &input.kind) {
        (Some(default), _) => default.clone(),
        (None, InputKind::Boolean) => "false".to_owned(),
        (None, _) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::pipeline::parse;
    use crate::model::ids::PipelineName;

    const TEXT: &str = "
on:
  manual:
    inputs:
      level: { type: choice, options: [quick, full], default: quick }
      dry: { type: boolean }
      count: { type: number, default: 3 }
      who: { required: true, description: who asks }
steps: { a: { image: x, environment: { LEVEL: '${{ inputs.level }}' } } }
";

    #[test]
    fn given_values_are_checked_and_the_rest_is_filled_in() {
        let pipeline = parse(PipelineName::new("p").unwrap(), "p.yml", TEXT).unwrap();
        let given = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let values = check(&pipeline, &given(&[("who", "ana"), ("dry", "true")])).unwrap();
        assert_eq!(values, given(&[("count", "3"), ("dry", "true"), ("level", "quick"), ("who", "ana")]));
        let wrong = check(&pipeline, &given(&[("level", "deep"), ("dry", "yes"), ("count", "x"), ("extra", "1")]));
        let wrong = wrong.unwrap_err().join("\n");
        for words in [
            "one of quick, full",
            "`dry` must be `true` or `false`",
            "must be a number",
            "no input `extra`",
            "`who` must be given",
        ] {
            assert!(wrong.contains(words), "{words} is not in\n{wrong}");
        }
        assert_eq!(defaults(&pipeline), given(&[("count", "3"), ("dry", "false"), ("level", "quick"), ("who", "")]));
    }
}
