"""Laws of the config mechanism, on a small schema with every shape that occurs: unions by `kind`, plain unions, lists, nesting."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pydantic
import pytest
import yaml
from pydantic import Field

from jaxsr.config import ConfigError, Strict, differences, dump, from_dict, load, to_dict


class UNet(Strict):
    kind: Literal["unet"] = "unet"
    channels: int = Field(32, gt=0)
    multipliers: tuple[int, ...] = (1, 2)
    dropout: float = 0.0


class Vit(Strict):
    kind: Literal["vit"] = "vit"
    width: int
    patch: int | Literal["auto"] = "auto"
    unet: bool = False


Network = Annotated[UNet | Vit, Field(discriminator="kind")]


class Stage(Strict):
    steps: int
    voxel_size: float | tuple[float, float, float] = 1.0
    network: Network | None = None


class Optimizer(Strict):
    learning_rate: float = 1e-4
    warmup: int = 0

    @pydantic.model_validator(mode="after")
    def _warmup_is_not_negative(self) -> "Optimizer":
        if self.warmup < 0:
            raise ValueError(f"warmup should not be negative, found {self.warmup}")
        return self


class Root(Strict):
    name: str = "run"
    seed: int = 0
    ema: bool = True
    optimizer: Optimizer = Optimizer()
    model: Network = UNet()
    stages: tuple[Stage, ...] = ()
    resume: Path | None = None


@pytest.fixture
def write(tmp_path):
    def write(text: str, name: str = "config.yaml") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


@pytest.fixture
def read(write):
    """The config in a YAML text, under overrides."""
    return lambda text="", *overrides: load(write(text), overrides, Root)


@pytest.fixture
def refuse(read):
    """The problems for which a YAML text under overrides is refused, in one string."""

    def refuse(text: str = "", *overrides: str) -> str:
        with pytest.raises(ConfigError) as error:
            read(text, *overrides)
        return str(error.value)

    return refuse


# --- values ---


def test_an_empty_file_gives_the_defaults(read):
    assert read("") == Root()


@pytest.mark.parametrize(
    "word, number", [("1e-3", 1e-3), ("1E-3", 1e-3), ("1.0e-3", 1e-3), (".5", 0.5), ("-2.", -2.0), ("3", 3.0), ("1e3", 1e3)]
)
def test_a_float_may_be_written_in_any_usual_way(read, word, number):
    for config in (read(f"optimizer: {{learning_rate: {word}}}"), read("", f"optimizer.learning_rate={word}")):
        assert config.optimizer.learning_rate == number
        assert type(config.optimizer.learning_rate) is float


@pytest.mark.parametrize("word, number", [("7", 7), ("1_000_000", 10**6), ("1e6", 10**6), ("010", 10), ("-3", -3)])
def test_an_integer_may_be_written_with_an_exponent_and_is_never_octal(read, word, number):
    assert read(f"seed: {word}").seed == number


@pytest.mark.parametrize("word", ["true", "1.5", "1.0", "'3'", "1:30", "0x10", "null", "[1]", "2020-01-01", ".inf"])
def test_nothing_but_an_integer_is_taken_for_one(refuse, word):
    assert "seed: should be a valid integer" in refuse(f"seed: {word}")


@pytest.mark.parametrize("word", ["true", "'1e-3'", "on", ".nan", ".inf", "-.inf", "null"])
def test_nothing_but_a_finite_number_is_taken_for_a_float(refuse, word):
    assert "optimizer.learning_rate: should be a" in refuse(f"optimizer: {{learning_rate: {word}}}")


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "y", "n", "1", "0", "'true'"])
def test_only_true_and_false_are_booleans(refuse, word):
    assert "ema: should be true or false, found" in refuse(f"ema: {word}")


@pytest.mark.parametrize("word", ["on", "no", "2020-01-01", "1:30", "0x10", "1.5.2"])
def test_words_that_yaml_1_1_would_convert_are_strings(read, word):
    assert read(f"name: {word}").name == word


@pytest.mark.parametrize("text", [
    "model: {kind: unet, multipliers: [1, true]}",
    "model: {kind: unet, dropout: false}",
    "model: {kind: vit, width: 8, patch: true}",
    "stages: [{steps: true}]",
    "stages: [{steps: 1, voxel_size: true}]",
    "stages: [{steps: 1, voxel_size: [1, 1, true]}]",
])  # fmt: skip
def test_a_boolean_is_refused_wherever_a_number_is_expected(refuse, text):
    assert "true" in refuse(text) or "false" in refuse(text)


@pytest.mark.parametrize("wrong", [{"seed": True}, {"seed": "1"}, {"ema": 1}, {"sed": 1}, {"optimizer": {"learning_rate": True}}])
def test_configs_made_in_python_are_as_strict(wrong):
    with pytest.raises(pydantic.ValidationError):
        Root(**wrong)


def test_a_config_cannot_be_changed_and_can_be_hashed(read):
    text = "model: {kind: unet, multipliers: [1, 2, 4]}\nstages: [{steps: 1, voxel_size: [1, 1, 2]}]\nresume: runs/a"
    assert hash(read(text)) == hash(read(text))
    assert read(text).resume == Path("runs/a")
    assert UNet(multipliers=[1, 2, 4]).multipliers == (1, 2, 4)
    with pytest.raises(pydantic.ValidationError):
        read(text).seed = 3


@pytest.mark.parametrize("annotation", [list[int], dict[str, int], tuple[list[int], ...], list[int] | None, Literal[0, 1], Literal["a", 1]])
def test_a_class_that_would_be_mutable_or_take_true_for_one_cannot_be_defined(annotation):
    with pytest.raises(TypeError, match=r"Wrong\.field"):
        type("Wrong", (Strict,), {"__annotations__": {"field": annotation}, "__module__": __name__})


# --- errors ---


def test_all_errors_are_told_at_once_each_with_path_value_expectation_and_place(write):
    path = write("sead: 3\nmodel:\n  kind: unet\n  chanels: 3\n  dropout: high\nstages:\n- steps: 1\n  network: {kind: vit}\n")
    with pytest.raises(ConfigError) as error:
        load(path, ["ema=maybe", "optimzer.learning_rate=1", "nothing"], Root)
    assert set(error.value.problems) == {
        "override 'nothing': should look like a.b.c=value",
        f"sead: unknown key, found 3; did you mean 'seed'? ({path}:1)",
        f"model.chanels: unknown key, found 3; did you mean 'channels'? ({path}:4)",
        f'model.dropout: should be a valid number, found "high" ({path}:5)',
        f"stages.0.network.width: is missing ({path}:8)",
        "ema: should be true or false, found \"maybe\" (override 'ema=maybe')",
        "optimzer: unknown key, found {\"learning_rate\": 1}; did you mean 'optimizer'? (override 'optimzer.learning_rate=1')",
    }
    assert str(error.value).startswith("7 errors in the config:\n  ")


def test_an_unknown_key_far_from_all_others_lists_them(refuse):
    assert "optimizer.momentum_of_inertia: unknown key, found 3; the keys here are learning_rate, warmup" in refuse(
        "", "optimizer.momentum_of_inertia=3"
    )


def test_a_wrong_kind_names_the_kinds_and_the_nearest(refuse):
    assert "model.kind: should be one of unet, vit, found \"unnet\"; did you mean 'unet'?" in refuse("model: {kind: unnet}")


def test_a_missing_kind_names_the_kinds(refuse):
    assert "model.kind: is missing, should be one of unet, vit" in refuse("", "model.channels=4")


def test_a_key_named_like_a_kind_keeps_its_place_in_the_path(refuse):
    assert refuse("model: {kind: vit, width: 8, unet: 3}").startswith("model.unet: should be true or false, found 3")


def test_the_branches_of_a_plain_union_are_told_in_one_sentence(refuse):
    assert "model.patch: should be a valid integer or 'auto', found \"big\"" in refuse("model: {kind: vit, width: 8, patch: big}")


def test_the_branch_of_a_plain_union_that_fits_best_is_the_one_told(refuse):
    assert refuse("stages: [{steps: 1, voxel_size: [1, a, 1]}]").startswith('stages.0.voxel_size.1: should be a valid number, found "a"')


def test_a_rule_between_keys_is_told_with_the_path_of_their_mapping(refuse):
    assert refuse("optimizer: {warmup: -1}").startswith("optimizer: warmup should not be negative, found -1 (")


def test_a_bound_is_told_with_the_value(refuse):
    assert refuse("", "model={kind: unet, channels: 0}").startswith("model.channels: should be greater than 0, found 0")


@pytest.mark.parametrize("text", ["3", "[1, 2]", "name"])
def test_a_file_that_is_not_a_mapping_is_refused(refuse, text):
    assert "a config is a mapping of keys to values" in refuse(text)


def test_every_key_written_twice_is_refused_with_both_lines(refuse):
    message = refuse("seed: 1\nname: a\nseed: 2\noptimizer:\n  warmup: 1\n  warmup: 2\n")
    assert "config.yaml:3: the key 'seed' is here twice; it was first set at" in message
    assert "config.yaml:6: the key 'warmup' is here twice" in message


@pytest.mark.parametrize("text, reason", [
    ("name: !!python/object/apply:os.system ['true']", "the tag tag:yaml.org,2002:python/object/apply:os.system is not read"),
    ("name: !include other.yaml", "the tag !include is not read"),
    ("seed: !!int many", "the tag tag:yaml.org,2002:int is not read"),
    ("optimizer: &o {warmup: 1}\nmodel: *o", "aliases"),
    ("model: &m [*m]", "aliases"),
    ("seed: [1", "not readable as YAML"),
    ("a: b: c", "config.yaml:1: not readable as YAML"),
    ("seed: 1\n---\nseed: 2", "not readable as YAML"),
    ("? [a]\n: 1", "a key should be a plain word"),
    ("name: '\x07'", "not readable as YAML"),
    ("name: " + 500 * "[", "not readable as YAML"),
])  # fmt: skip
def test_yaml_beyond_plain_values_is_refused_and_never_run(refuse, text, reason):
    assert reason in refuse(text)


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    for name, reason in [("absent.yaml", "No such file"), (".", "Is a directory"), ("latin.yaml", "not UTF-8")]:
        with pytest.raises(ConfigError, match=f"cannot read the config .*{reason}"):
            load(tmp_path / name, [], Root)


# --- bases ---


def test_a_file_lies_key_by_key_on_top_of_its_base(write, read):
    write("seed: 1\noptimizer: {learning_rate: 1e-3, warmup: 10}\nmodel: {kind: unet, multipliers: [1, 2, 4]}", "base.yaml")
    config = read("base: base.yaml\noptimizer: {warmup: 5}\nmodel: {multipliers: [8]}")
    assert config == Root(seed=1, optimizer=Optimizer(learning_rate=1e-3, warmup=5), model=UNet(multipliers=(8,)))


def test_bases_chain_and_of_a_list_the_last_lies_on_top(write, read, tmp_path):
    (tmp_path / "sub").mkdir()
    write("seed: 1\nname: root\nema: false", "root.yaml")
    write("base: ../root.yaml\nseed: 2", "sub/a.yaml")
    write("name: b", "b.yaml")
    assert read("base: [sub/a.yaml, b.yaml]") == Root(seed=2, name="b", ema=False)


def test_bases_that_form_a_circle_are_refused(write, refuse):
    write("base: config.yaml", "other.yaml")
    assert "config.yaml → other.yaml → config.yaml" in refuse("base: other.yaml")


def test_a_base_that_is_missing_is_told_with_the_line_that_wants_it(refuse):
    assert "config.yaml:2: base: cannot read the config" in refuse("seed: 1\nbase: absent.yaml")


def test_an_error_in_a_base_is_told_with_its_own_file_and_line(write, refuse):
    write("name: a\nseed: true", "base.yaml")
    assert "base.yaml:2)" in refuse("base: base.yaml\nname: b")


def test_a_mapping_of_another_kind_replaces_the_one_below(write, read):
    write("model: {kind: unet, channels: 3}", "base.yaml")
    assert read("base: base.yaml\nmodel: {kind: vit, width: 8}").model == Vit(width=8)
    assert read("base: base.yaml\nmodel: {kind: unet, dropout: 0.1}").model == UNet(channels=3, dropout=0.1)


# --- overrides ---


def test_an_override_lies_on_top_of_the_file(read):
    assert read("optimizer: {learning_rate: 1e-3, warmup: 10}", "optimizer.warmup=5", "name=b") == Root(
        name="b", optimizer=Optimizer(learning_rate=1e-3, warmup=5)
    )


@pytest.mark.parametrize("order", [1, -1])
def test_an_override_of_the_kind_drops_the_settings_of_the_old_kind_in_any_order(read, order):
    assert read("model: {kind: unet, channels: 3}", *["model.kind=vit", "model.width=8"][::order]).model == Vit(width=8)


def test_an_override_may_be_a_list_a_mapping_or_null(read):
    config = read("resume: a", "model={kind: unet, multipliers: [1, 4]}", "stages=[{steps: 3}]", "resume=null")
    assert config == Root(model=UNet(multipliers=(1, 4)), stages=(Stage(steps=3),))
    assert read("resume: a", "resume=").resume is None


def test_a_number_in_an_override_enters_a_list(read, refuse):
    text = "stages: [{steps: 1}, {steps: 2, voxel_size: 2}]"
    assert read(text, "stages.1.steps=5").stages == (Stage(steps=1), Stage(steps=5, voxel_size=2.0))
    assert "stages: should be a list" in refuse(text, "stages.2.steps=5")


def test_of_two_overrides_of_one_key_the_later_holds(read):
    assert read("", "seed=1", "seed=2", "optimizer.warmup=1", "optimizer.warmup=3") == Root(seed=2, optimizer=Optimizer(warmup=3))


@pytest.mark.parametrize("override", ["seed", "=3", "a..b=3", ".a=3", "a.=3", ""])
def test_an_override_without_path_or_value_is_refused(refuse, override):
    assert f"override {override!r}: should look like a.b.c=value" in refuse("", override)


def test_an_override_that_is_no_yaml_is_told_with_its_text(refuse):
    assert refuse("", "seed=[1").startswith("override 'seed=[1': not readable as YAML")


def test_a_value_may_hold_an_equals_sign(read):
    assert read("", "name=a=b").name == "a=b"


# --- writing ---

_WORDS = [
    "on",
    "no",
    "null",
    "~",
    "",
    "1e-3",
    "1e6",
    "010",
    "0x1",
    "1:30",
    "true",
    "2020-01-01",
    "a: b",
    "# c",
    "é→",
    " x ",
    "a\nb",
    "*a",
    "'",
    "<<",
]


@pytest.mark.parametrize("name", _WORDS)
def test_a_dumped_string_comes_back_whatever_it_looks_like(name, write):
    config = Root(name=name)
    assert load(write(dump(config)), [], Root) == config
    assert yaml.safe_load(dump(config))["name"] == name  # for other readers of YAML too


@pytest.mark.parametrize("number", [1e-3, 1e-300, 1e300, 0.1, 1e16, 123456789.123, -0.5, 5e-324, 3.0])
def test_a_dumped_float_comes_back_to_the_last_bit(number, write):
    config = Root(optimizer=Optimizer(learning_rate=number))
    assert load(write(dump(config)), [], Root) == config


def test_a_dumped_config_holds_every_default_and_comes_back_equal(read, write):
    config = read(
        "stages: [{steps: 1, voxel_size: [1, 1.5, 2], network: {kind: vit, width: 3}}, {steps: 2}]", "resume=a/b", "model.kind=unet"
    )
    text = dump(config)
    assert "learning_rate: 0.0001" in text
    assert "voxel_size: [1.0, 1.5, 2.0]" in text
    assert load(write(text), [], Root) == config
    assert from_dict(to_dict(config), Root) == config


def test_a_dictionary_is_checked_like_a_file():
    with pytest.raises(ConfigError, match=r"^optimizer\.warmup: should be a valid integer, found true$"):
        from_dict({"optimizer": {"warmup": True}}, Root)


def test_differences_name_each_path_with_both_values():
    a = Root(stages=(Stage(steps=1), Stage(steps=2)))
    b = Root(optimizer=Optimizer(learning_rate=1e-3), model=Vit(width=3), stages=(Stage(steps=1), Stage(steps=5)))
    assert differences(a, a) == []
    assert differences(a, b) == [
        "optimizer.learning_rate: 0.0001 → 0.001",
        'model.kind: "unet" → "vit"',
        "model.channels: 32 → absent",
        "model.multipliers: [1, 2] → absent",
        "model.dropout: 0.0 → absent",
        "stages.1.steps: 2 → 5",
        "model.width: absent → 3",
        'model.patch: absent → "auto"',
        "model.unet: absent → false",
    ]


def test_the_mechanism_needs_neither_jax_nor_numpy_nor_the_rest_of_jaxsr():
    program = (
        "import sys, jaxsr.config; print([m for m in sys.modules if m in ('jax', 'numpy') or m.startswith('jaxsr.') and 'config' not in m])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"
