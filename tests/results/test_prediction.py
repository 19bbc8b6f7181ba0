"""Rank correlation of halves with base-to-new, on a tree made by hand."""

import pytest
from result_trees import write_run
from test_selection import write_setting

from proxyfda.results import prediction
from proxyfda.results.prediction import predictions, rank_correlation
from proxyfda.utils.errors import UserError


def naive_spearman(first, second):
    """Pearson's correlation of ranks, ties having their mean rank."""

    def ranks(values):
        return [
            sum(other < value for other in values) + (values.count(value) + 1) / 2
            for value in values
        ]

    a, b = ranks(first), ranks(second)
    mean = (len(a) + 1) / 2
    dot = sum((x - mean) * (y - mean) for x, y in zip(a, b))
    return dot / (sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b)) ** 0.5


# λ -> (seen and unseen of split 1, of split 2), (base and new)
SETTINGS = {
    0: (((80, 50), (78, 52)), (82, 48)),
    1: (((80, 56), (78, 55)), (81, 55)),
    3: (((79, 60), (77, 61)), (80, 54)),
    10: (((75, 62), (73, 59)), (76, 63)),
    30: (((60, 63), (61, 62)), (65, 64)),
}


def write_tree(root, dataset="dtd", settings=SETTINGS, final=SETTINGS):
    for weight, (halves, _) in settings.items():
        name, config = ("CoOp+rkd", f"cfg-weight_{weight}") if weight else ("CoOp", "cfg")
        write_setting(root, name, halves, config, weight or None, dataset)
    for weight, (_, (base, new)) in final.items():
        name, config = ("CoOp+rkd", f"cfg-weight_{weight}") if weight else ("CoOp", "cfg")
        for seed in (1, 2):
            for part, accuracy in (("base", base), ("new", new)):
                more = {"config": config, "time": {"run": 20.0}}
                write_run(root, part, dataset, name, seed, accuracy + seed, **more)


def h(pair):
    return 2 * pair[0] * pair[1] / (pair[0] + pair[1])


def mean(values):
    return sum(values) / len(values)


def test_the_correlation_is_spearman_s_over_settings(tmp_path):
    write_tree(tmp_path)
    (row,) = predictions([str(tmp_path)])
    pseudo = [mean([h(pair) for pair in halves]) for halves, _ in SETTINGS.values()]
    new = [mean([h((b + s, n + s)) for s in (1, 2)]) for _, (b, n) in SETTINGS.values()]
    assert (row.trainer, row.dataset, row.shots, row.settings) == ("CoOp", "dtd", 16, 5)
    assert row.correlation == pytest.approx(naive_spearman(pseudo, new))
    assert -1 < row.correlation < 1
    best = pseudo.index(max(pseudo[1:]))
    assert row.chosen == f"CoOp+rkd cfg-weight_{list(SETTINGS)[best]}"
    assert row.chosen_h == pytest.approx(new[best])
    assert row.best_h == pytest.approx(max(new)) and row.plain_h == pytest.approx(new[0])
    # 5 settings x 2 splits of 5 s, against 20 s.
    assert (row.seconds, row.ratio) == (50.0, 2.5)


def test_several_datasets_have_their_average(tmp_path):
    other = dict(zip(SETTINGS, list(SETTINGS.values())[::-1]))
    write_tree(tmp_path)
    write_tree(tmp_path, "eurosat", other, other)
    dtd, eurosat, average = predictions([str(tmp_path)])
    assert [row.dataset for row in (dtd, eurosat, average)] == ["dtd", "eurosat", "average"]
    pseudo, new = (
        [
            mean([value(tree[weight]) for tree in (SETTINGS, other)])
            for weight in SETTINGS
        ]
        for value in (
            lambda one: mean([h(pair) for pair in one[0]]),
            lambda one: mean([h((one[1][0] + s, one[1][1] + s)) for s in (1, 2)]),
        )
    )  # fmt: skip
    assert average.correlation == pytest.approx(naive_spearman(pseudo, new))
    assert average.plain_h == pytest.approx(new[0])


def test_only_settings_with_both_kinds_of_runs_count(tmp_path):
    final = {weight: SETTINGS[weight] for weight in (1, 3, 10)}
    write_tree(tmp_path, final=final)
    (row,) = predictions([str(tmp_path)])
    assert (row.settings, row.plain_h) == (3, None)


def test_too_little_to_rank(tmp_path):
    two = {weight: SETTINGS[weight] for weight in (0, 1)}
    write_tree(tmp_path, settings=two, final=two)
    (row,) = predictions([str(tmp_path)])
    assert row.correlation is None and row.settings == 2
    assert rank_correlation([1, 2, 3], [5, 5, 5]) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [([1, 2, 3, 4], [4, 3, 2, 1]), ([1, 1, 2, 5], [3, 4, 4, 9]), ([3, 1, 2, 9], [1, 7, 2, 2])],
)
def test_ties_have_their_mean_rank(first, second):
    assert rank_correlation(first, second) == pytest.approx(naive_spearman(first, second))


def test_nothing_in_common_is_one_sentence(tmp_path):
    write_tree(tmp_path, settings={0: SETTINGS[0]}, final={1: SETTINGS[1]})
    with pytest.raises(UserError, match="no setting in .* --evaluate-all makes both"):
        predictions([str(tmp_path)])


def test_the_command_prints_and_writes(tmp_path, capsys):
    write_tree(tmp_path)
    path = tmp_path / "rows.csv"
    assert prediction.main([str(tmp_path), "--csv", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "DescribableTextures" in printed and "rank correlation" in printed
    assert path.read_text().startswith("trainer,dataset,shots,settings,correlation,chosen,")
