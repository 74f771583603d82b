"""How acquisitions are written in a config."""

import pickle

import pytest

from jaxsr.config import ConfigError, Strict, differences, dump, from_dict, load, to_dict
from jaxsr.experiment import DataConfig
from jaxsr.physics.protocol import Acquisition, known_acquisitions, load_acquisition, named_acquisition

NAMES = ("1.5T", "3T", "64mT", "thick-slice")


class Holder(Strict):
    """A config with an acquisition in it."""

    acquisition: Acquisition


def read(acquisition):
    return from_dict({"acquisition": acquisition}, Holder).acquisition


@pytest.mark.parametrize("name", NAMES)
def test_a_name_stands_for_all_its_settings(name):
    assert read(name) == read({"name": name}) == named_acquisition(name) == load_acquisition(name)
    assert known_acquisitions() == NAMES


def test_settings_on_top_of_a_name_change_only_themselves():
    thick = named_acquisition("thick-slice")
    changed = read({"name": "thick-slice", "snr": [10, 20], "voxel_size": {"2": 5}})
    assert changed == thick.model_copy(update={"snr": (10.0, 20.0), "voxel_size": (1.0, 1.0, 5.0)})
    assert differences(thick, changed) == [
        "voxel_size: [1.0, 1.0, [3.0, 6.0]] → [1.0, 1.0, 5.0]",
        "snr: [20.0, 50.0] → [10.0, 20.0]",
    ]


def test_an_acquisition_may_be_ones_own():
    own = read({"voxel_size": [1, 1, [3, 4]], "slice_axis": 2, "snr": 20, "motion": {"jumps": 2}})
    assert own.name == "custom"
    assert own.voxel_size == (1.0, 1.0, (3.0, 4.0))
    assert own.snr == (20.0, 20.0)
    assert own.motion
    assert own.motion.axis == 1
    assert own.ghosting is None


@pytest.mark.parametrize("name", NAMES)
def test_a_config_with_an_acquisition_comes_back_as_it_was_written(name, tmp_path):
    """Saved configs hold every setting, so that a run is what it was whatever the name comes to mean; old ones hold a name."""
    config = DataConfig(acquisition={"name": name, "ghosting": {"every": 3}})
    (tmp_path / "data.yaml").write_text(dump(config))
    again = load(tmp_path / "data.yaml", [], DataConfig)
    assert again == config == from_dict(to_dict(config), DataConfig) == pickle.loads(pickle.dumps(config))
    assert hash(again) == hash(config)
    assert not differences(config, again)
    assert from_dict({"acquisition": name}, DataConfig) == DataConfig(acquisition=named_acquisition(name))


def test_overrides_reach_into_an_acquisition(tmp_path):
    (tmp_path / "data.yaml").write_text("acquisition: {name: thick-slice}\n")
    changed = load(tmp_path / "data.yaml", ["acquisition.snr=5", "acquisition.voxel_size.2=4"], DataConfig).acquisition
    assert (changed.snr, changed.voxel_size) == ((5.0, 5.0), (1.0, 1.0, 4.0))
    assert load(tmp_path / "data.yaml", ["acquisition=64mT"], DataConfig).acquisition == named_acquisition("64mT")


def test_a_file_describes_an_acquisition_on_top_of_a_name_or_of_another_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: thick-slice\ngap: 0.5\n")
    (tmp_path / "worse.yaml").write_text("base: mine.yaml\nsnr: 4\n")
    mine = load_acquisition(str(tmp_path / "worse.yaml"), ["coils=8"])
    assert (mine.gap, mine.snr, mine.coils, mine.profile) == (0.5, (4.0, 4.0), 8, "sinc")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("7T", r"acquisition: unknown acquisition '7T'; known: 1\.5T, 3T, 64mT, thick-slice"),
        ({"snr": 3}, r"acquisition: needs the name of an acquisition that it changes \(1\.5T, .*\), or a voxel_size"),
        ({"name": "mine", "snr": 3}, "needs the name of an acquisition"),
        ({"name": "1.5T", "snrr": 3}, r"acquisition\.snrr: unknown key, found 3; did you mean 'snr'\?"),
        ({"name": "1.5T", "snr": [5, 2]}, r"acquisition\.snr: a range goes from low to high, not \[5\.0, 2\.0\]"),
        ({"name": "1.5T", "snr": True}, r"acquisition\.snr: .*found true"),
        ({"name": "1.5T", "snr": -3}, r"acquisition\.snr\.0: should be greater than 0"),
        ({"name": "1.5T", "voxel_size": [1, 1, [3, 2]]}, r"acquisition\.voxel_size\.2: .*low to high"),
        ({"name": "1.5T", "voxel_size": [1, 1]}, r"acquisition\.voxel_size"),
        ({"name": "1.5T", "voxel_size": [1, 1, 0]}, r"acquisition\.voxel_size\.2: .*0\.1"),
        ({"name": "1.5T", "window": "hann"}, r"acquisition\.window: should be 'box', 'ellipse', 'hamming' or 'tukey', found \"hann\""),
        ({"name": "1.5T", "partial_fourier": {"fraction": 0.5}}, r"acquisition\.partial_fourier\.fraction: should be greater than 0\.5"),
        ({"name": "1.5T", "gap": 1}, "acquisition: gap is between slices: give a slice_axis, or no gap"),
        ({"name": "thick-slice", "gap": -3}, "gap must be above -3, the slice thickness.*got -3"),
        ({"name": "thick-slice", "motion": {"axis": 2}}, r"motion\.axis must not be the slice_axis, 2"),
    ],
)
def test_what_is_wrong_is_said_with_its_key_and_what_is_known(wrong, message):
    with pytest.raises(ConfigError, match=message):
        read(wrong)


@pytest.mark.parametrize(
    "source, overrides, message",
    [
        ("7T", (), r"unknown acquisition '7T'; known: 1\.5T, .*, or a \.yaml file of your own"),
        ("absent.yaml", (), "cannot read the config absent.yaml"),
        ("3T", ("snr",), r"override 'snr': should look like a\.b\.c=value"),
        ("3T", ("snrr=3",), "snrr: unknown key"),
    ],
)
def test_what_simulate_is_given_wrong_is_said_too(source, overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_acquisition(source, overrides)
