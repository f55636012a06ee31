"""Makes conversations with SmolLM2 from which the chat variants learn.

Usage: python prepare_chat.py MODEL TEXT_DIRECTORY OUTPUT.jsonl [COUNT]

The prompts ask about passages of the training text (summarize, continue, rewrite, classify)
and about everyday worries. The answers are the model's own, greedy, to these prompts in the clear:
a private prompt should lead to the answer that the clear prompt leads to. Everything is drawn with
seed 0. In half of the prompts about a passage the instruction is public, as an application would
send it; everything else of a user's message is private.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from client_lib.prompts.chat import ChatTemplate, Message
from client_lib.prompts.spans import private, public

ANSWER_TOKENS = 48
_BATCH = 16
_PASSAGE = range(90, 240)  # characters
_TRAINED_SHARE = 0.94  # of each file; training holds the rest out

_INSTRUCTIONS = (
    "Summarize this text in one sentence:",
    "Continue this text:",
    "Rewrite this text in simple words:",
    "What is this text about?",
    "Who or what is mentioned in this text?",
    "Is the mood of this text happy, sad or neutral? Say why.",
    "What happens in this text?",
    "Give this text a title:",
)
_WORRIES = (
    "my fever will not go down",
    "I cannot sleep at night",
    "my back hurts after work",
    "I have had a headache for three days",
    "my child coughs all night",
    "I feel anxious before meetings",
    "I am allergic to peanuts and ate a cookie",
    "my knee is swollen after running",
    "I want to quit smoking",
    "I forgot to take my pills",
    "my landlord wants to raise the rent",
    "I lost my passport on a trip",
    "my employer has not paid my salary",
    "I owe money to a friend",
    "I want to leave my job",
    "my neighbor plays loud music",
    "my car makes a strange noise",
    "my phone was stolen",
    "I have a job interview tomorrow",
    "I failed an important exam",
    "my sister does not talk to me any more",
    "my husband and I argue about money",
    "my son is bullied at school",
    "my mother is ill and lives far away",
    "I feel lonely in a new city",
    "I am going to be a father",
    "my dog does not eat",
    "my plants are dying",
    "the kitchen sink is blocked",
    "I burned the rice for dinner",
    "I want to save money for a house",
    "I have to write a speech for a wedding",
    "I spend too much time on my phone",
    "I need to tell my boss about a mistake",
    "I cannot pay my taxes this year",
    "my bank card does not work abroad",
)
_ASKING = (
    "{}. What should I do?",
    "Please help me: {}.",
    "I have a problem: {}. What do you advise?",
    "What can I do if {}?",
)


def passages(directory: Path, chance: random.Random) -> list[str]:
    """Returns passages of one to three whole sentences from the training part of every file."""
    found = []
    for path in sorted(directory.glob("*.txt")):
        if path.stem == "held_out":
            continue
        text = path.read_text(encoding="utf-8")
        paragraphs = text[: int(len(text) * _TRAINED_SHARE)].split("\n")
        kept = []
        for paragraph in paragraphs:
            passage = ""
            for sentence in re.split(r"(?<=[.!?])\s+", paragraph.strip()):
                if len(passage) + len(sentence) + 1 >= _PASSAGE.stop:
                    break
                passage = f"{passage} {sentence}".strip()
            if len(passage) in _PASSAGE:
                kept.append(passage)
        found += chance.sample(kept, min(60, len(kept)))
    chance.shuffle(found)
    return found


def questions(directory: Path, chance: random.Random) -> Iterator[Message]:
    """Yields users' messages: two about a passage, then one about a worry."""
    texts = iter(passages(directory, chance))
    worries = [asking.format(worry) for worry in _WORRIES for asking in _ASKING]
    chance.shuffle(worries)
    for index, passage in enumerate(texts):
        instruction = chance.choice(_INSTRUCTIONS)
        if chance.random() < 0.5:
            yield Message("user", (public(f"{instruction}"), private(f" {passage}")))
        else:
            yield Message("user", f"{instruction} {passage}")
        if index % 2 and worries:
            worry = worries.pop()
            yield Message("user", worry[0].upper() + worry[1:])


@torch.no_grad()
def main() -> None:
    directory, text, output = map(Path, sys.argv[1:4])
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 400
    template = ChatTemplate.from_tokenizer_config(directory / "tokenizer_config.json")
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True).eval()
    asked = [one for one, _ in zip(questions(text, random.Random(0)), range(count), strict=False)]
    prompts = [template.render([message]) for message in asked]
    written: dict[int, str] = {}
    # Batches of similar length waste little on padding.
    order = sorted(range(len(prompts)), key=lambda index: sum(len(span.text) for span in prompts[index]))
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        ids = [
            [token for span in prompts[row] for token in tokenizer(span.text, add_special_tokens=False).input_ids]
            for row in rows
        ]
        batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt")
        found = model.generate(**batch, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        for row, answer in zip(rows, found[:, batch.input_ids.shape[1] :].tolist(), strict=True):
            if tokenizer.eos_token_id in answer:
                answer = answer[: answer.index(tokenizer.eos_token_id) + 1]
            written[row] = tokenizer.decode(answer)
        print(f"{len(written)} of {len(order)}", file=sys.stderr, flush=True)
    with output.open("w", encoding="utf-8") as file:
        for row, spans in enumerate(prompts):
            prompt = [{"text": span.text, "private": span.is_private} for span in spans]
            file.write(json.dumps({"prompt": prompt, "answer": written[row]}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
