"""One run of vLLM: loads a model, and writes the greedy tokens of a few prompts.

    python3 tests/engines/tokens.py OUT MODEL LOAD_FORMAT TP [MORE]

MORE is JSON: further arguments of `vllm.LLM`. The engine's log goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
)

PROMPTS = [[1, 5, 9, 100, 42], [7, 8, 9], [500, 400, 300, 200, 100, 50, 25]]


def main(out: str, model: str, load_format: str, tp: str, more: str = "{}") -> None:
    from vllm import LLM, SamplingParams

    options = json.loads(more)
    count = options.pop("max_tokens", 24)
    llm = LLM(
        model=model,
        load_format=load_format,
        tensor_parallel_size=int(tp),
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="bfloat16",
        max_model_len=256,
        **options,
    )
    greedy = SamplingParams(temperature=0, max_tokens=count, detokenize=False)
    answers = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], greedy)
    Path(out).write_text(json.dumps([list(answer.outputs[0].token_ids) for answer in answers]))


if __name__ == "__main__":
    main(*sys.argv[1:])
