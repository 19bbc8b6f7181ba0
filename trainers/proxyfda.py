"""The trainers with FDA and Proxy-FDA, made by the plugin as in any other codebase."""

from proxyfda import register
from trainers.cocoop import CoCoOp
from trainers.coop import CoOp
from trainers.maple import MaPLe
from trainers.promptsrc import PromptSRC

register(CoOp, CoCoOp, MaPLe, PromptSRC)
