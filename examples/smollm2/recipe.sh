#!/bin/sh
# Trains the bundle of SmolLM2 that ships with the package, from text files to audit. Every step resumes where it was
# interrupted, and a step that is done is not repeated.
#
#   sh recipe.sh TEXT_DIRECTORY WORK_DIRECTORY [DELCTL]
#
# TEXT_DIRECTORY holds lm/NAME.txt for the books that prepare_text.py names, and eval/wikitext2.valid.txt. About an
# hour and a half on one core. What the run that made the shipped files printed is in recipe.log.
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

echo "== bundle"
set --
for name in strict balanced open chat-strict chat-balanced chat-open; do
    set -- "$@" --variant "$work/$name"
done
"$delctl" bundle --name SmolLM2-135M-Instruct --model "$model" --projection "$work/projection" "$@" --table int8 \
    --out "$work/bundle" --overwrite

echo "== evaluation"
"$delctl" evaluate "$work/bundle" --model "$model" --text "$work/text/held_out.txt" --passages 32 --written 4 \
    --prompt-tokens 64 --control "$work/control-clear" --control "$work/control-nothing" --quiet --json \
    >"$work/evaluation.json"
"$delctl" evaluate "$work/bundle" --model "$model" --chat "$work/chat.jsonl" --passages 6 --quiet --json >"$work/evaluation_chat.json"

echo "== audit"
"$delctl" audit "$work/bundle" --model "$model" --text "$work/text/held_out.txt" --out "$work/audit" --quick --update --quiet
"$delctl" inspect "$work/bundle" | sed -n 2p
