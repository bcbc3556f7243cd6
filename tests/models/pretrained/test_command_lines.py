"""What a command line or a script leaves open is asked for; what decides nothing is not."""

import pytest

from mechdiff.core.errors import MechdiffError
from mechdiff.models.pretrained.shell import command_lines

OPEN = "which it does not define, or sets on a condition"


def asked(text: str) -> str:
    with pytest.raises(MechdiffError) as error:
        command_lines.read_text(text)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{} `cat flags.txt`", "uses `cat flags.txt`, which"),
        ("D=`cat flags.txt`\n{} $D", "uses `cat flags.txt`, which"),
        ('D="$(cat flags.txt)"\n{} $D', "uses $(cat flags.txt), which"),
        ("{} --$X 3", "uses --$X, which"),
        ("{} --noise_schedule `cat f`", "uses `cat f`, which"),
        ("{} diffusion.steps=4000", "'diffusion.steps=4000' is no flag"),
        ("{} +diffusion.predict_xstart=true", "'+diffusion.predict_xstart=true' is no flag"),
        ("{} @flags.txt", "'@flags.txt' is no flag, and may be a file of options"),
        ("{} configs/cosine4000.yaml", "'configs/cosine4000.yaml' is no flag, and may be"),
        ("cat f | xargs {}", "by xargs; write them in its command"),
        ("{} --attention_resolutions 32 16 8", "'16' follows --attention_resolutions 32, and is no flag"),
        ("{} --channel_mult=1 2 2", "'2' follows --channel_mult 1, and is no flag"),
        ("{} --channel_mult (1, 2)", "'2' follows --channel_mult (1,, and is no flag"),
    ],
)
def test_words_that_carry_options_are_asked_about(text, expected):
    assert expected in asked(text.format("python image_train.py --num_heads 2"))


@pytest.mark.parametrize(
    "change",
    [
        "for X in 4000; do",
        "for ((X=1; X<9; X++)); do",
        "let X=X*4",
        'let "X += 1"',
        "((X*=4))",
        "(( X *= 4 ))",
        "read -r X < f",
        "cat f | while read X; do",
        "printf -v X 4000",
        "source my_settings.sh",
        ". ./my_settings.sh",
        "export $(cat .env)",
        'eval "$(cat f)"',
        "unset X",
        '[ "$1" = x0 ] && X=4000',
        "test -f f || X=4000",
        'if [ "$1" = x0 ]; then X="${X}0"; fi',
    ],
)
@pytest.mark.parametrize("use", ["$X", "${X}", "${X:-50}"])
def test_variables_that_change_are_not_what_they_were_at_first(change, use):
    text = f"X=1000\n{change}\npython image_train.py --num_heads 2 --diffusion_steps {use}"
    assert f"uses {use}, {OPEN}" in asked(text) or "sets $X twice" in asked(text)
    harmless = f"X=1000\n{change}\npython image_train.py --num_heads 2 --seed $X"  # a null control
    if "X=4000" not in change:
        assert command_lines.read_text(harmless).flags == {"num_heads": "2", "seed": "$X"}


@pytest.mark.parametrize(
    "append",
    [
        'if [ "$1" = x0 ]; then F+=" --predict_xstart True"; fi',
        'if [ "$1" = x0 ]; then\n  if b; then c; fi\n  F="$F --predict_xstart True"\nfi',
        '[ -n "$COSINE" ] && F="$F --noise_schedule cosine"',
        'cd a && [ -n "$COSINE" ] &&\n F+=" --noise_schedule cosine"',
        '[ -z "$LINEAR" ] || F+=" --noise_schedule cosine"',
        "case a in\nb)\nF+=' --predict_xstart True'\n;;\nesac",
        "source my_settings.sh; F+=' --lr 1'",
    ],
)
@pytest.mark.parametrize("command", ["python image_train.py $F", "python image_train.py --lr 1", ""])
def test_what_is_appended_on_a_condition_is_asked_about(append, command):
    message = asked(f'F="--num_heads 2"\n{append}\n{command}')
    assert "$F" in message and "on a condition" in message


def test_a_variable_of_training_that_is_set_on_a_condition_is_asked_about():
    append = "[ $A ] && TRAIN_FLAGS+=' --num_heads 4'"
    text = f"TRAIN_FLAGS='--num_heads 2'\n{append}\npython a.py --lr 2 $TRAIN_FLAGS"
    assert "sets $TRAIN_FLAGS on a condition" in asked(text)
    assert f"uses $TRAIN_FLAGS, {OPEN}" in asked(f"export {text}".replace("&& ", "&& export "))


def test_a_default_behind_a_file_that_may_set_the_variable_is_asked_about():
    text = "python a.py --num_heads 2 --diffusion_steps ${STEPS:-1000}"
    assert command_lines.read_text(text).flags["diffusion_steps"] == "1000"
    assert f"uses ${{STEPS:-1000}}, {OPEN}" in asked(f"source settings.sh\n{text}")


@pytest.mark.parametrize(
    "text",
    [
        "F='{}'\nsource ~/.bashrc\nsource /a/etc/profile.d/conda.sh\n. env/bin/activate\npython a.py $F",
        'F="{}"\neval "$(conda shell.bash hook)"\npython a.py $F',
        "source settings.sh\nF='{}'\npython a.py $F",
        "F='{}'\nfor S in 1 2; do python a.py $F; done",
        "F='{}'\nif [ -z $A ]; then mkdir b; exit 1; fi\npython a.py $F",
        "if [ $A ]; then\nF='--num_heads 2'\nF+=' --lr 1'\npython a.py $F\nfi",
        "cd a && F='{}' && python a.py $F",
        "cd a && F='{}'\npython a.py $F",
        "F='{}' || exit 1\npython a.py $F || exit 1",
        "N=1\n((N++))\nread -p 'go? ' N\nmpiexec -n $N python a.py {}",
        "NOW=`date +%F`\npython a.py {} > out_$NOW.txt 2> err.txt",
        "python a.py {} > log.json",
        "srun --gres=gpu:1 accelerate launch --config_file a.yaml a.py {}",
        "```bash\npython a.py {}\n```",
        "if a; then F='--lr 9'; fi\nF='{}'\npython a.py $F",
    ],
)
def test_scripts_that_leave_nothing_open_are_read(text):
    assert command_lines.read_text(text.format("--num_heads 2 --lr 1")).flags == {"num_heads": "2", "lr": "1"}


def test_values_without_bearing_may_be_open():
    text = "python a.py --num_heads 2 --gpu 0 1 --log_dir `pwd`/$NOW --name $NOW --save_dir $(a b)/c"
    flags = command_lines.read_text(f"NOW=`date +%F`\n{text}").flags
    assert (flags["num_heads"], flags["gpu"], flags["name"]) == ("2", "0", "`date +%F`")
    assert flags["save_dir"] == "$(a b)/c"


@pytest.mark.parametrize(
    "before, behind",
    [
        ("", ">log.txt 2>&1"),
        ("", "2>err.txt"),
        ("F='--lr 1'; [ -f c ] && F=\"$F --resume_checkpoint c\"; ", "$F"),
        ("F='--lr 1'; source activate guided; ", "$F"),
        ("F='--lr 1'; source setvars.sh --force; ", "$F"),
        ("wget x && unzip x && F='--lr 1'; ", "$F"),
        ("case $1 in\n-h|--help) exit;;\nesac\n", ""),
        ("python make_list.py files.txt; ", ""),
        ("while true; do sleep 1; done; ", ""),
    ],
)
def test_what_decides_nothing_is_read(before, behind):
    flags = command_lines.read_text(f"{before}python image_train.py --num_heads 2 {behind}").flags
    assert flags["num_heads"] == "2"


@pytest.mark.parametrize(
    "change",
    [
        "while x; do HEADS=4; done",
        "for i in 1 2; do HEADS=4; done",
        "case x in\nsmall) HEADS=4;;\nesac",
        "case x in small) HEADS=4;; esac",
    ],
)
def test_a_variable_set_in_a_loop_or_branch_is_asked_about(change):
    assert "$HEADS" in asked(f"HEADS=2\n{change}\npython image_train.py --num_heads $HEADS")
