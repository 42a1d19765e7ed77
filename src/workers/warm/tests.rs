use super::*;

#[test]
fn only_usual_packages_are_learned_each_once_and_boundedly() {
    let mut kind = Kind::default();
    let names = ["numpy", "evil", "sklearn.ensemble", "numpy", "numpy.os; x", "inference"];
    kind.learn(names.map(str::to_owned).to_vec());
    assert_eq!(kind.imports, ["numpy", "sklearn.ensemble"]);
    kind.learn((0..1000).map(|index| format!("torch.m{index}")).collect());
    assert_eq!(kind.imports.len(), IMPORTS);
}
