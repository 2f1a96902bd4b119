"""`python -m llmtrain_trainer.sample DIR --prompt TEXT`: text from an exported model, by transformers alone.

Nothing of the trainer is used on purpose: what runs here runs wherever Hugging Face models run.
"""

from __future__ import annotations

import argparse
from typing import Any


def main() -> None:
    """Print the prompt and its continuation."""
    parser = argparse.ArgumentParser(prog="python -m llmtrain_trainer.sample", description=main.__doc__)
    parser.add_argument("directory", help="an exported model")
    parser.add_argument("--prompt", default="def ")
    parser.add_argument("--tokens", type=int, default=120)
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the likeliest token")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(
        generate(options.directory, options.prompt, options.tokens, temperature=options.temperature, seed=options.seed)
    )


def generate(directory: str, prompt: str, tokens: int, *, temperature: float, seed: int) -> str:
    """The prompt and up to `tokens` more tokens of text."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    torch.manual_seed(seed)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    model: Any = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    choice = {"do_sample": True, "temperature": temperature, "top_k": 50} if temperature > 0 else {"do_sample": False}
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=tokens,
        pad_token_id=model.config.eos_token_id,
        **choice,
    )
    text: str = tokenizer.decode(output[0], skip_special_tokens=True)
    return text


if __name__ == "__main__":
    main()
