"""Flags: the published defaults, recipes, and refusals in one line."""
import subprocess
import sys
from pathlib import Path

import pytest

from options.option_vq import DEAD_FLAGS, get_args_parser

ROOT = Path(__file__).parent.parent
PUBLISHED = ("--batch-size 256 --lr 2e-4 --total-iter 300000 --lr-scheduler 200000 --nb-code 512 --down-t 2 "
             "--depth 3 --dilation-growth-rate 3 --out-dir output --dataname t2m --vq-act relu "
             "--quantizer ema_reset --loss-vel 0.5 "
             "--recons-loss l1_smooth --exp-name VQVAE").split()


def test_the_defaults_are_the_published_command():
    assert vars(get_args_parser([])) == vars(get_args_parser(PUBLISHED))
    args = get_args_parser([])
    sizes = args.code_dim, args.output_emb_width, args.width, args.stride_t, args.vq_norm
    assert sizes == (512, 512, 512, 2, None)
    rest = args.mu, args.commit, args.warm_up_iter, args.gamma, args.seed, args.window_size
    assert rest == (0.99, 0.02, 1000, 0.05, 123, 64)


def test_recipes_read_as_their_commands():
    assert vars(get_args_parser([f"@{ROOT}/options/t2m.args"])) == vars(get_args_parser(PUBLISHED))
    kit = get_args_parser([f"@{ROOT}/options/kit.args", "--batch-size", "8"])
    assert kit.dataname == "kit" and kit.batch_size == 8
    momask = get_args_parser([f"@{ROOT}/options/momask.args"])
    published = dict(quantizer="residual", num_quantizers=6, nb_code=512, code_dim=512, batch_size=256,
                     quantize_dropout_prob=0.2, sample_codebook_temp=0.5, block_dropout=0.2, gamma=0.05,
                     lr=2e-4, warm_up_iter=2000, lr_scheduler=[150000, 250000], feat_bias=5)
    assert {name: getattr(momask, name) for name in published} == published


@pytest.mark.parametrize(("flags", "words"), [
    ("--output-emb-width 256", "code-dim"),
    ("--stride-t 4", "must be 2"),
    ("--window-size 62", "multiple of 4"),
    ("--vq-norm GN --width 48", "divisible by 32"),
    ("--vq-norm XX", "invalid choice"),
    ("--beta 0.25", "quantizer orig"),
    ("--quantizer reset --mu 0.5", "acts only with --quantizer ema_reset or ema or residual"),
    ("--lr 0", "over 0"),
    ("--lr nan", "out of range"),
    ("--lr -1", "over 0"),
    ("--batch-size 0", "at least 1"),
    ("--batch-size 1.5", "whole number"),
    ("--results-dir x", "does nothing"),
    ("--visual-name x", "does nothing"),
    ("--resume-gpt x", "does nothing"),
    ("--exp-name ../x", "folder name"),
    ("--resume auto --overwrite", "leave out"),
    ("--resume auto --resume-pth x", "leave out"),
    ("--quantizer ema --mu 1", "over 0 and below 1"),
    ("--quantizer fsq", "needs --fsq-levels"),
    ("--quantizer fsq --fsq-levels 8 5 --nb-code 512", "make 40 codes"),
    ("--quantizer fsq --fsq-levels 2000 2000", "at most 1,048,576"),
    ("--vis-gt", "does nothing"),
    ("--tota-iter 3", "unrecognized"),
    ("--float64 --amp bf16", "contradicts"),
    ("--float64 --tf32", "contradicts"),
    ("--loss-vel 0 --vel-slice velocities", "acts only with --loss-vel"),
    ("--force", "acts only on a resumed run"),
    (f"@{ROOT}/options/t2m_fast.args --quantizer fsq --fsq-levels 8 6 5", "leave it at 0.99"),
    ("--num-quantizers 3", "acts only with --quantizer residual"),
    ("--fsq-levels 8 5", "acts only with --quantizer fsq"),
    ("--amp fp8", "invalid choice"),
])
def test_what_cannot_work_is_refused_in_one_line(flags, words, capsys):
    with pytest.raises(SystemExit) as stop:
        get_args_parser(flags.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in error and error.count("\n") == 1


UPSTREAM = """--dataname t2m --batch-size 256 --window-size 64 --total-iter 300000 --warm-up-iter 1000
--lr 2e-4 --lr-scheduler 200000 --gamma 0.05 --weight-decay 0 --commit 0.02 --loss-vel 0.5
--recons-loss l1_smooth --code-dim 512 --nb-code 512 --mu 0.99 --down-t 2 --stride-t 2 --width 512 --depth 3
--dilation-growth-rate 3 --output-emb-width 512 --vq-act relu --vq-norm none --quantizer ema_reset
--beta 1.0 --resume-pth FILE --out-dir output --exp-name VQVAE
--print-iter 200 --eval-iter 1000 --seed 123 --nb-vis 20"""


def test_every_flag_of_upstream_is_taken_or_refused_by_name():
    words = UPSTREAM.split()
    assert len(words[::2]) + len(DEAD_FLAGS) == 36
    args = get_args_parser(words)
    assert args.nb_vis == 20 and args.resume_pth == "FILE"


def test_the_flags_given_are_told_from_defaults():
    args = get_args_parser(["--vq-act", "relu", "--width", "512", "--lr", "1e-3"])
    assert sorted(args.given) == ["lr", "vq_act", "width"]
    assert "given" not in vars(args)


def test_help_needs_no_torch():
    code = ("import sys, runpy; sys.argv = ['train_vq.py', '--help']\n"
            "try: runpy.run_path('train_vq.py', run_name='__main__')\n"
            "except SystemExit: pass\n"
            "assert 'torch' not in sys.modules and 'numpy' not in sys.modules")
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                         check=True).stdout
    for flag in PUBLISHED[::2]:
        assert flag in out
