"""Moved to dpo_lab.config.identity: runtime may not import config."""

from dpo_lab.config.identity import run_id

__all__ = ["run_id"]
