"""Configs of foreign networks in any format: JSON, YAML, TOML, and flags in command lines and scripts."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from mechdiff.core.errors import MechdiffError
from mechdiff.models import pretrained
from mechdiff.models.pretrained.adm import options as adm_options
from mechdiff.models.pretrained.files import configs
from mechdiff.models.pretrained.shell import command_lines


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("config.yaml", "a: [1", "config.yaml, line 1: not valid YAML"),
        (
            "config.yaml",
            "a: {model: {target: x.UNetModel, params: {num_channels: 32}}}",
            "config.yaml has options of a network under a.model, too deep to be read; write them at its top",
        ),
        ("config.yaml", "model: {dim: 8, dim_mults: [1, 2]}", "has options of a network under model, too"),
        ("config.yaml", "unet: {_class_name: UNet2DModel, block_out_channels: [8]}", "under unet, too deep"),
        ("config.yaml", "block_out_channels: [8]", "write _class_name: UNet2DModel if they are of that one"),
        (
            "config.yaml",
            "model: {params: {first_stage_config: {a: 1}, unet_config: {params: {model_channels: 32}}}}",
            "config.yaml describes a latent diffusion model (by its option first_stage_config)",
        ),
        ("config.toml", "num_channels: 32", "config.toml: not valid TOML"),
        ("config.yaml", "NUM_HEADS: 2\nnum-heads: 4", "config.yaml sets 'num_heads' twice, differently"),
        ("config.yaml", "num_channels: ${w}\nw: 32", "num_channels='${w}' stands for a value elsewhere"),
        ("config.yaml", "a: 1\n\tb: 2", "config.yaml, line 2: not valid YAML"),
        ("config.yaml", "!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("config.yaml", "- 1\n- 2", "config.yaml holds [1, 2], not options by name"),
        ("config.yaml", "5: 1\nnum_channels: 32", "config.yaml has an option 5 that is not a name"),
        (
            "config.yaml",
            "a: &a [1,1]\nnum_channels: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nb: [*b,*b,*b]",
            "unknown option",
        ),
        ("flags.txt", "python train.py", "no flags; paste the command line"),
        ("args.txt", "image_size: 64", "or call a file of lines name: value config.yaml"),
        ("flags.txt", "--num_channels 3 --lr", "--lr has no value"),
        ("flags.txt", "--num_channels '3", "not a command line"),
        ("flags.txt", "train --num_heads 2\ntrain --num_heads 4", "sets --num_heads twice, to '2' and '4'"),
        ("flags.txt", "M=x(--num_heads 2)", "'x(--num_heads' holds a flag, but is none"),
        ("flags.txt", 'bash -c "a.py --lr 1"', "'a.py --lr 1' holds a flag, but is none"),
        ("flags.txt", 'sbatch --wrap="a.py --lr 1"', "'a.py --lr 1' holds a flag, but is none"),
        ("flags.txt", 'A="it\'s"\ntrain --lr 1', "not a command line"),
        ("flags.txt", "python a.py --lr 1 \u2014num_heads 2", "'\u2014num_heads' holds a flag, but is none"),
        ("flags.txt", "python a.py --lr 1 \u2212\u2212num_heads 2", "num_heads' holds a flag, but is none"),
        ("flags.txt", "python a.py --use_fp16 \u2013num_heads 2", "--use_fp16 has no value"),
        (
            "flags.txt",
            "if a; then F='--lr 1'; else F='--lr 2'; fi\na.py $F",
            "sets $F twice, differently, before",
        ),
        ("flags.txt", "python a.py --lr 1 num_heads=2", "'num_heads=2' is no flag; write --name value"),
        ("flags.txt", "python a.py --lr 1 $D", "flags.txt uses $D, which it does not define"),
        ("flags.txt", 'A="--lr 1 $B"\npython a.py "$A"', "flags.txt uses $B, which it does not define"),
        ("flags.txt", 'python a.py --lr 1 "$@"', "flags.txt uses $@, which it does not define"),
        (
            "flags.txt",
            "python a.py --lr 1 \\\n  # --lr 2 \\\n  --predict_xstart True",
            "'--predict_xstart' begins a command of its own: a comment or the end of a line",
        ),
        ("flags.txt", "python a.py --lr 1 \\\n\n --num_heads 2", "'--num_heads' begins a command of its own"),
        (
            "flags.txt",
            "python classifier_train.py --noise_schedule cosine",
            "no flags; paste the command line",
        ),
        ("flags.txt", "A=aaaaaaaa\n" + 20 * 'A="$A $A"\n', "flags.txt: $A is too long for a command line"),
    ],
)
def test_configs_that_cant_be_read_are_one_line(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(MechdiffError) as error:
        pretrained.read(tmp_path)
    line = str(error.value).replace(str(tmp_path), "")
    assert expected in line and "\n" not in line and len(line) < 400


@pytest.mark.parametrize("lines", ["M=({})", "M=( {} )", 'M="{}"', "M+=({})", "(python train.py {})"])
def test_flags_are_read_out_of_variables_arrays_and_brackets(lines):
    command = "--num_heads 2 --learn_sigma=True --channel_mult (1,2)"
    expected = {"num_heads": "2", "learn_sigma": "True", "channel_mult": "(1,2)"}
    assert configs.flags_of(lines.format(command)) == expected
    both = lines.format(command) + "\n python sample.py --batch_size 4 --num_heads 2 --batch_size 8"
    assert configs.flags_of(both) == expected | {"batch_size": "8"}


@pytest.mark.parametrize(
    "text",
    [
        'M="{}"\n# mpiexec -n 8 \\\npython train.py $M --data_dir /data/set#1 --lr 1 # --lr 2',
        "python -u train.py {} --data_dir '/data/set#1' --lr 1 \\",
        "mpirun -np 8 --allow-run-as-root python train.py {} --data_dir /data/set#1 --lr 1; echo done",
        "torchrun --nproc_per_node=8 train.py {} --data_dir /data/set#1 --lr 1 > log.txt 2>&1 &",
        "python -m torch.distributed.launch --nproc_per_node 4 train.py {} --data_dir /data/set#1 --lr 1;",
        "python -m pkg.train {} --data_dir /data/set#1 --lr 1 | tee log.txt",
        'set -e\nmkdir -p a\nexport M="{}"; export D="--lr 1"\npython a.py $M $D --data_dir /data/set#1',
        "if [ -f a ]; then\n(cd a; python a.py {} \\ \n --data_dir /data/set#1 --lr 1)\nfi",
        'R=1\nM=(\n  {} # two\n  --data_dir /data/set#1\n)\npython a.py "${{M[@]}}" --lr ${{L:-1}} --lr $R',
        "F='{}'\npython a.py $F\nF='--data_dir /data/set#1'\nF+=' --lr 1'\nF=\"$F\"\npython b.py $F",
        "{}\n--data_dir\n/data/set#1\n--lr\n1",
        "set -euo pipefail\nset -eo pipefail; set -o pipefail\npython a.py {} --data_dir /data/set#1 --lr 1",
        "conda activate a\nconda run -n env python a.py {} --data_dir /data/set#1 --lr 1",
        "export PYTHONPATH=$PYTHONPATH:$(pwd)\npython a.py {} --data_dir /data/set#1 --lr 1",
        "OPENAI_LOGDIR=$HOME/logs python a.py {} --data_dir /data/set#1 --lr 1",
        "export CUDA_VISIBLE_DEVICES=$GPU\nX=$(hostname)\npython a.py {} --data_dir /data/set#1 --lr 1",
        'XLA_FLAGS="a=b" LD_LIBRARY_PATH=$C/lib:$D python a.py {} --data_dir /data/set#1 --lr 1',
        'M="{}"\nALL="$M --lr 1"\npython a.py $ALL --data_dir /data/set#1',
        "M='{}'\nN=\"$M --lr 1\"\npython a.py --data_dir /data/set#1",
    ],
)
def test_ordinary_scripts_are_read_as_a_shell_does(text):
    """Comments, continued lines, what starts a program, and what a script does besides."""
    pasted = command_lines.read_text(text.format("--num_heads 2"))
    assert pasted.flags == {"num_heads": "2", "data_dir": "/data/set#1", "lr": "1"}
    assert pasted.runs and not pasted.notes


def test_a_variable_that_no_command_uses_is_left_out_and_named():
    text = 'OLD="--num_heads 4"\nNEW="--num_heads 2"\n'
    pasted = command_lines.read_text(f"{text}python train.py $NEW")
    assert pasted.flags == {"num_heads": "2"}
    assert pasted.notes == ("left out, as no command of flags uses them: $OLD",)
    readme = command_lines.read_text(f"{text}python sample.py $NEW --lr 1 $SAMPLE_FLAGS")
    assert (readme.flags, len(readme.notes)) == ({"num_heads": "2", "lr": "1"}, 2)
    assert readme.notes[1].endswith("and by name not of the network: $SAMPLE_FLAGS")
    with pytest.raises(MechdiffError, match="sets --num_heads twice"):
        command_lines.read_text(text)
    assert not command_lines.read_text(text.splitlines()[0]).runs


@pytest.mark.parametrize("flag", ["--noise_schedule cosine", "--predict_xstart True", "--num_heads 2"])
@pytest.mark.parametrize(
    "text",
    ["python train.py {}\npython sample.py --image_size 8", "a.py --lr 1 {}\npython a.py --image_size 8"],
)
def test_what_one_command_sets_and_another_leaves_at_its_default_is_refused(flag, text):
    """A positive control: no tensor tells these. The null controls are below."""
    match = f"sets {flag.split()[0]} to .* in one command, and another leaves it at its default"
    with pytest.raises(MechdiffError, match=match):
        command_lines.read_text(text.format(flag))


@pytest.mark.parametrize(
    "other",
    [
        "python sample.py --image_size 8 --lr 1 --num_heads 4 --noise_schedule linear",  # defaults
        "python sample.py --image_size 8 --learn_sigma True",  # told by the tensors
        "python evaluate.py --batch_size 8; python evaluator.py a b",  # not of the network
        "python -m classifier_train --image_size 16 --noise_schedule cosine --num_heads 8",
        "$PYTHON ../scripts/super_res_sample.py --num_heads 8 --large_size 32",
        "C='--noise_schedule cosine'\npython classifier_train.py $C",
    ],
)
def test_commands_of_other_programs_decide_nothing(other):
    pasted = command_lines.read_text(f"{other}\npython image_train.py --image_size 8")
    by_name = any("passed over: " in note for note in pasted.notes)
    assert by_name == any(name in other for name in ("classifier", "super_res"))
    deciding = {"image_size": "8"} | ({"num_heads": "4", "noise_schedule": "linear"} if "4" in other else {})
    assert {name: v for name, v in pasted.flags.items() if name in adm_options.UNTOLD} == deciding
    assert pasted.runs


def test_programs_that_are_alone_or_sample_with_a_classifier_are_the_networks():
    for program in ("super_res_sample.py", "classifier_sample.py"):
        assert command_lines.read_text(f"python {program} --num_heads 2").flags == {"num_heads": "2"}


@pytest.mark.parametrize(
    "text",
    [
        'A="{}"\nB="--lr 1"\nALL="$A $B"',
        'A="{}"\nA="$A --lr 1"',
        'export A="{}"\nT="$A --lr 1"\nD=$HOME/data',
    ],
)
def test_variables_that_are_made_of_others_are_read_without_a_command(text):
    pasted = command_lines.read_text(text.format("--num_heads 2"))
    assert pasted.flags == {"num_heads": "2", "lr": "1"}
    assert not pasted.runs and not pasted.notes


@pytest.mark.parametrize("text", ['export X="--xla 3"\n{}', 'X="--xla 3" {}'])
def test_the_environment_of_a_command_with_flags_is_left_out_and_named(text):
    pasted = command_lines.read_text(text.format("python a.py --num_heads 2"))
    assert pasted.flags == {"num_heads": "2"}
    assert pasted.notes == ("left out, as no command of flags uses them: $X",)
    assert command_lines.read_text(text.format("python a.py")).flags == {"xla": "3"}


def test_several_configs_are_not_guessed_among(tmp_path):
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("num_channels: 3")
    with pytest.raises(MechdiffError, match=r"several configs \(a\.yaml, b\.yaml\)"):
        configs.config_file(tmp_path)


@pytest.mark.parametrize("second", ["diffusion_config.yaml", "diffusion_config.yml"])
def test_files_of_a_model_and_of_its_noise_levels_are_one_config(tmp_path, second):
    (tmp_path / second).write_text("steps: 1000\nnoise_schedule: cosine\nclip_denoised: true")
    (tmp_path / "model_config.yaml").write_text("num_channels: 32\nlearn_sigma: true")
    path = configs.config_file(tmp_path)
    assert path.name == "model_config.yaml" and configs.unread(path) == []
    assert configs.read_config(path) == {
        "model": {"num_channels": 32, "learn_sigma": True},
        "diffusion": {"steps": 1000, "noise_schedule": "cosine", "clip_denoised": True},
    }
    (tmp_path / "diffusion_config.json").write_text("{}")
    with pytest.raises(
        MechdiffError, match=r"several files of noise levels \(.*; keep the one that goes with"
    ):
        configs.read_config(path)
    (tmp_path / "diffusion_config.json").unlink()
    (tmp_path / "config.yaml").write_text("num_channels: 32")  # another network's, or of which all is there
    assert configs.unread(configs.config_file(tmp_path)) == ["model_config.yaml", second]
