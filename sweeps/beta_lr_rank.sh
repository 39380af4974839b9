#!/usr/bin/env bash
# Which beta, learning rate and rank suit the data? A grid of 27 runs; with sweeper=optuna (or random) 20 that a search
# picks, with prune=asha those that fall behind end early.
set -euo pipefail
python -m dpo_lab --multirun study=beta_lr_rank sweep.name=beta_lr_rank "$@"
