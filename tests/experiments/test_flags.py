"""Command lines of launchers: what is refused, renamed, switched on."""

import jax
import pytest
from reference import launching

from experiments import _flags


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--preset=cpu61"], "error: unknown preset 'cpu61'; closest: cpu16"),
        (
            ["--coordinator=127.0.0.1:1", "--processes=2", "--process_id=1"],
            "error: --coordinator is for train and sweep, which share work out; start this without it",
        ),
        (["--set=train.stepz=3"], "error: unknown field 'train.stepz'; closest: train.steps"),
        (["--set=train.steps=many"], "error: train.steps='many' is not of type int"),
        (["--set=train.steps"], "error: --set='train.steps' has no '='"),
        (["--wrkdir=x"], "error: unknown flag --wrkdir; did you mean --workdir"),
        (["--images_per_step=16"], "error: Unknown command line flag 'images_per_step'"),
        (["--classes=cats=1"], "error: --classes says what the images of --images=FOLDER are; give that too"),
        (["--image_block=16"], "error: unknown flag --image_block; did you mean --set=sweep.image_block=16"),
        (["--workdir="], "error: --workdir= is empty; give a value, or leave it out"),
        (["--join_timeout=nan"], "error: --join_timeout=nan is not a finite number"),
        (["--join_timeout=inf"], "error: --join_timeout=inf is not a finite number"),
        (["--processes=99999999999"], "error: --processes=99999999999 is out of range; at most 2147483647"),
        (["--processes=2", "--process_id=0"], "error: --processes has no effect without --coordinator=HOST"),
        (["--set=name=../x"], "error: name='../x' leads elsewhere; give a folder's name without / and"),
        (["--workdir=gs://"], "error: gs:// is no bucket's address; write gs://BUCKET/FOLDER or s3://"),
        (["--workdir=s3:///runs"], "error: s3:///runs is no bucket's address; write gs://BUCKET/FOLDER"),
        (["--workdir=gcs://bucket/runs"], "error: gcs://bucket/runs is no bucket's address; write gs://"),
        (
            ["--debug=perhaps"],
            "error: --debug=perhaps is neither true nor false; write --debug or --nodebug",
        ),
        (["--log_file=/dev/full"], "error: /dev/full: the disk is full; free some space or choose another"),
        (["train"], "error: unexpected argument 'train'; write --flag=value"),
    ],
)
def test_wrong_flags_are_one_line_with_a_way_out_and_exit_code_2(launch, capsys, flags, expected):
    assert launch(launching.raising(AssertionError("main must not be called")), *flags) == 2
    assert launching.only_line(capsys).startswith(expected)


def test_a_flag_that_a_launcher_needs_is_named_where_it_is_missing():
    _flags.flags.DEFINE_string("needed", None, "", required=True)
    try:
        with pytest.raises(_flags.flags.Error, match=r"^--needed is missing; see --help$"):
            _flags.parse(["x"])
    finally:
        delattr(_flags.FLAGS, "needed")


def test_the_compilation_cache_is_private_and_switched_on(launch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    try:
        launch(lambda *_: None, f"--compilation_cache={tmp_path}/cache")
        assert jax.config.jax_compilation_cache_dir == f"{tmp_path}/cache"
        assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_compilation_cache_that_cannot_be_made_is_one_line(launch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert launch(launching.raising(AssertionError()), f"--compilation_cache={tmp_path}/file") == 2
    assert "a file stands where a folder is needed" in launching.only_line(capsys)


def test_a_number_of_images_is_told_from_a_folder_of_them(launch, capsys):
    _flags.flags.DEFINE_string("images", None, "A folder.")
    try:
        assert launch(launching.raising(AssertionError()), "--images=16") == 2
    finally:
        delattr(_flags.FLAGS, "images")
    assert launching.only_line(capsys).endswith("did you mean --set=sweep.images=16")


@pytest.mark.parametrize(
    ("name", "setting", "line"),
    [
        ("sweep", "train.steps=3", "has no effect on a network that is trained already; leave it out"),
        ("sample", "sweep.images=3", "has no effect in sample: give --count=N"),
        ("sample", "sweep.draws=3", "has no effect in sample: nothing there depends on it; leave it out"),
        (
            "sweep_scaling",
            "sweep.chunk=3",
            "has no effect in sweep_scaling: nothing there depends on it; leave it out",
        ),
        ("screen", "sweep.ablations=zero", "has no effect in screen: give --ablation=NAME"),
        ("roles", "sweep.ablations=mean", "has no effect in roles: it replaces by zero"),
        ("sweep", "study.pairs=4", "has no effect in sweep: it is for reproduce, study and examine"),
        ("train", "study.pairs=4", "has no effect in train: it is for reproduce, study and examine"),
        (
            "sweep",
            "data.path=/nonexistent",
            "has no effect in sweep: its images are those of --images=FOLDER or --celeba=FOLDER",
        ),
        (
            "screen",
            "data.preprocessing.crop=ddim",
            "has no effect without --images=FOLDER or --celeba=FOLDER, whose images it is of; give that too",
        ),
        ("examine", "data.cache=x", "has no effect in examine: its images are those of --celeba=FOLDER"),
        ("interchange", "data.complexity=2", "has no effect in interchange: it takes no images"),
        ("reproduce", "train.steps=3", "has no effect on a network that is trained already; leave it out"),
        (
            "reproduce",
            "data.name=celeba",
            "has no effect in reproduce: its images are those of --images=FOLDER or --celeba=FOLDER",
        ),
        ("planted", "sweep.images=3", "has no effect in planted: of the settings it follows the seed alone"),
        (
            "calibrate",
            "data.flip=False",
            "has no effect in calibrate: of the settings it follows the seed alone",
        ),
        ("claims", "seed=1", "has no effect in claims: it follows no settings"),
        (
            "compare",
            "data.preprocessing.background=white",
            "has no effect without --images=FOLDER, whose images it is of; give that too",
        ),
        (
            "compare",
            "data.flip=False",
            "has no effect in compare: it follows -n, --timesteps, --ablations, --seed, "
            "data.preprocessing.background and .white alone",
        ),
        (
            "import_checkpoint",
            "unet.norm_groups=8",
            "has no effect in import_checkpoint: the network is that of the files; flags state what they "
            "leave open (--help)",
        ),
        ("import_checkpoint", "train.steps=3", "has no effect in import_checkpoint: nothing is trained"),
        (
            "import_checkpoint",
            "data.classes=Male",
            "has no effect in import_checkpoint: of data only data.preprocessing is recorded",
        ),
    ],
)
def test_settings_without_effect_are_refused(name, setting, line, tmp_path, capsys):
    model = {
        "compare": ["--before=x"],
        "import_checkpoint": ["--from=x", "--to=y"],
        "screen": ["--model=x", "--ablation=mean"],
        **{other: [] for other in ("train", "reproduce", "planted", "calibrate", "claims")},
    }.get(name, ["--model=x"])
    assert launching.launch(name, f"--workdir={tmp_path}", *model, f"--set={setting}") == 2
    assert launching.only_line(capsys) == f"error: --set={setting} {line}"


def test_a_ranking_of_all_components_takes_a_single_image(tmp_path, capsys):
    flags = (f"--workdir={tmp_path}", f"--model={tmp_path}/absent", "--set=sweep.images=1")
    assert launching.launch("screen", *flags, "--every") == 2  # for another reason
    assert "too small" not in launching.only_line(capsys)


@pytest.mark.parametrize("setting", ["sweep.ablations=zero", "sweep.images=3"])
def test_settings_that_a_launcher_follows_are_taken(setting, tmp_path, capsys):
    flags = (f"--workdir={tmp_path}", f"--model={tmp_path}/absent", f"--set={setting}")
    assert launching.launch("roles", *flags) == 2  # for another reason
    assert "no effect" not in launching.only_line(capsys)


def test_settings_of_images_are_taken_where_they_act(tmp_path):
    def main(config, workdir):
        taken.append(config)

    taken, flags = [], ("--preset=tiny", f"--workdir={tmp_path}")
    box, classes = "--set=data.preprocessing.filter=box", "--set=data.classes=Male"
    celeba, images = f"--celeba={tmp_path}", f"--images={tmp_path}"
    for name, words in (
        ("sweep", ("--model=x", celeba, box, classes)),
        ("sweep", ("--model=x", images, box)),
        ("examine", ("--model=x", celeba, box, "--set=study.pairs=4")),
        ("import_checkpoint", ("--from=x", "--to=y", box)),
        ("reproduce", ("--set=train.steps=3", "--set=data.n_train=9", "--set=study.pairs=4")),
    ):
        main.__module__ = f"experiments.{name}"
        assert launching.launch(name, *flags, *words, main=main) == 0
    assert len(taken) == 5
    main.__module__ = "experiments.sweep"
    assert launching.launch("sweep", *flags, "--model=x", images, classes, main=main) == 2
    (tmp_path / "list_eval_partition.txt").touch()  # now it is CelebA
    assert launching.launch("sweep", *flags, "--model=x", images, classes, main=main) == 0


@pytest.mark.parametrize("name", ["gates", "doses"])
def test_flags_of_the_first_edition_are_read_under_their_names_of_today(name, tmp_path):
    def main(config, workdir):
        values.extend(_flags.FLAGS.gates)

    values = []
    flags = (f"--workdir={tmp_path}", "--model=x", f"--{name}=0,0.5")
    assert launching.launch("sweep_scaling", *flags, main=main) == 0
    assert values == ["0", "0.5"]


@pytest.mark.parametrize("name", ["entropy", "phases", "roles", "screen"])
def test_where_nothing_can_be_written_nothing_is_computed(name, tmp_path, capsys):
    """All was computed first, and lost."""
    (tmp_path / "file").touch()
    flags = ("--preset=tiny", "--model=cpu16-synthetic-seed0", f"--workdir={tmp_path}/file")
    assert launching.launch(name, *flags) == 2
    line = f"error: {tmp_path}/file: a file stands where a folder is needed; move it or choose another folder"
    assert capsys.readouterr().err.splitlines()[-1] == line
