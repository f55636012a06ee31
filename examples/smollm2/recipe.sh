#!/bin/sh
# Trains the bundle of SmolLM2 that ships with the package, from text files to audit. Every step resumes where it was
# interrupted, and a step that is done is not repeated.
#
#   sh recipe.sh TEXT_DIRECTORY WORK_DIRECTORY [DELCTL]
#
# TEXT_DIRECTORY holds lm/NAME.txt for the books that prepare_text.py names, and eval/wikitext2.valid.txt. About
# three hours on one core. What the run that made the shipped files printed is in recipe.log.
set -eu
source=$1 work=$2 delctl=${3:-delctl} python=${PYTHON:-python3}
here=$(dirname "$0")
# One thread, and large blocks that go back to the allocator instead of the system: a tenth faster.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MALLOC_MMAP_THRESHOLD_=4000000000 MALLOC_TRIM_THRESHOLD_=8000000000

model=$("$delctl" model get smollm2)
[ -e "$work/text/wikipedia.txt" ] || "$python" "$here/prepare_text.py" "$source" "$work/text"
set --
for name in state_union inaugural grimm wizard_of_oz moby_dick pride_and_prejudice alice shakespeare wikipedia; do
    set -- "$@" --text "$work/text/$name.txt"
done
sizes="--prompt-tokens 64 --continuation-tokens 32 --batch 4 --quiet"
few="--evaluation-windows 16 --test-windows 24"
steps=25  # of the soft prompts for text, controls included

if [ ! -e "$work/projection/projection.json" ]; then
    echo "== stage 1: projection"
    "$delctl" train projection --model "$model" "$@" $sizes --dim 64 --steps 100 --evaluation-windows 32 \
        --out "$work/projection"
fi

if [ ! -e "$work/chat.jsonl" ]; then
    echo "== conversations"
    "$python" "$here/prepare_chat.py" "$model" "$work/text" "$work/chat.part" 320
    mv "$work/chat.part" "$work/chat.jsonl"
fi

train() { "$delctl" train soft-prompt --model "$model" --projection "$work/projection" $sizes $few --train-linear "$@"; }

for variant in open:0.30:25 balanced:0.14:15 strict:0.065:10; do  # the last is the steps of the variant for chat
    name=${variant%%:*} chat_steps=${variant##*:} level=${variant#*:}
    level=${level%:*}
    if [ ! -e "$work/$name/variant.json" ]; then
        echo "== stage 2: $name, MAP ASR $level"
        train "$@" --name "$name" --map-asr "$level" --steps $steps --out "$work/$name"
    fi
    if [ ! -e "$work/chat-$name/variant.json" ]; then
        echo "== stage 2: chat-$name, the noise of $name"
        ratio=$("$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))["ratio_numerator"] / 2**31)' \
            "$work/$name/variant.json")
        train "$@" --name "chat-$name" --task chat --chat "$work/chat.jsonl" --ratio "$ratio" --steps "$chat_steps" \
            --out "$work/chat-$name"
    fi
done

for kind in nothing clear; do
    [ -e "$work/control-$kind/control.json" ] && continue
    echo "== control: $kind"
    "$delctl" train control --kind "$kind" --model "$model" "$@" $sizes $few --steps $steps --out "$work/control-$kind"
done

# Variants of codes, with an adapter, and controls that have one, too.
longer="--prompt-tokens 64 --continuation-tokens 32 --batch 4 --quiet --evaluation-windows 16 --test-windows 48"
for name in codes:250:8 chat-codes:100:4; do
    ranked=${name#*:} name=${name%%:*}
    [ -e "$work/$name/variant.json" ] && continue
    echo "== codes: $name"
    answers=""
    [ "$name" = codes ] || answers="--task chat --chat $work/chat.jsonl"
    # shellcheck disable=SC2086
    "$delctl" train codes --model "$model" "$@" $longer $answers --name "$name" --epsilon 8 --bits 8 \
        --steps "${ranked%:*}" --adapter-rank "${ranked#*:}" --out "$work/$name"
done
for kind in nothing clear; do
    [ -e "$work/control-$kind-adapted/control.json" ] && continue
    echo "== control with an adapter: $kind"
    "$delctl" train control --kind "$kind" --model "$model" "$@" $longer --steps 250 --adapter-rank 8 \
        --out "$work/control-$kind-adapted"
done

echo "== bundle"
set --
for name in strict balanced open codes chat-strict chat-balanced chat-open chat-codes; do
    set -- "$@" --variant "$work/$name"
done
"$delctl" bundle --name SmolLM2-135M-Instruct --model "$model" --projection "$work/projection" "$@" --table int8 \
    --out "$work/bundle" --overwrite

echo "== evaluation"
evaluate() { "$delctl" evaluate "$work/bundle" --model "$model" --quiet --json "$@"; }
text="--text $work/text/held_out.txt --prompt-tokens 64 --written 4"
# shellcheck disable=SC2086
evaluate $text --passages 32 --variant strict --variant balanced --variant open --control "$work/control-clear" \
    --control "$work/control-nothing" >"$work/evaluation.json"
# shellcheck disable=SC2086
evaluate $text --passages 96 --variant codes --control "$work/control-clear-adapted" \
    --control "$work/control-nothing-adapted" >"$work/evaluation_codes.json"
evaluate --chat "$work/chat.jsonl" --passages 6 --variant chat-strict --variant chat-balanced --variant chat-open \
    >"$work/evaluation_chat.json"
evaluate --chat "$work/chat.jsonl" --passages 6 --variant chat-codes >"$work/evaluation_chat_codes.json"

echo "== audit"
"$delctl" audit "$work/bundle" --model "$model" --text "$work/text/held_out.txt" --out "$work/audit" --quick --update --quiet
"$delctl" inspect "$work/bundle" | sed -n 2p
