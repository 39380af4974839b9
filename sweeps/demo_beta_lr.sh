#!/usr/bin/env bash
# Which beta and learning rate suit the demo pairs? Six runs of a few minutes each on two CPU cores; the reference's
# log-probs are computed by the first run and shared by the others.
set -euo pipefail
python -m dpo_lab --multirun experiment=demo sweep.name=demo_beta_lr loss.beta=0.05,0.1,0.3 optim.lr=1e-4,2e-4 "$@"
