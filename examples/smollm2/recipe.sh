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
steps=25  # of the soft prompts without adapter

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

# Levels of DEL as published: counts, a linear decoder and a soft prompt, which learns the text.
train() { "$delctl" train soft-prompt --model "$model" --projection "$work/projection" $sizes $few --train-linear "$@"; }

for variant in open:0.30 balanced:0.14 strict:0.065; do
    name=published-${variant%%:*} level=${variant#*:}
    [ -e "$work/$name/variant.json" ] && continue
    echo "== $name, MAP ASR $level"
    train "$@" --name "$name" --task published --map-asr "$level" --steps $steps --out "$work/$name"
done
for kind in nothing clear; do
    [ -e "$work/control-published-$kind/control.json" ] && continue
    echo "== control without an adapter: $kind"
    "$delctl" train control --kind "$kind" --model "$model" "$@" $sizes $few --steps $steps \
        --out "$work/control-published-$kind"
done

# The levels: codes with an adapter, for text and for chat. An adapter that has learned the text behind 256 codes is
# the start of all, and of the controls. From there everybody learns what the model expects of the clear prompt.
longer="--prompt-tokens 64 --continuation-tokens 32 --batch 4 --quiet --evaluation-windows 16 --test-windows 48"
if [ ! -e "$work/begin/variant.json" ]; then
    echo "== start of the levels"
    "$delctl" train codes --model "$model" "$@" $longer --name begin --epsilon 8 --bits 8 --steps 250 --adapter-rank 8 \
        --out "$work/begin"
fi
distilled="--start $work/begin --chat $work/chat.jsonl --chat-share 0.5 --distillation --adapter-rank 4"
distilled="$distilled --learning-rate 3e-3 --steps 200"
for variant in balanced:8:8:0.7 strict:6:4.5:1 open:8:8:1; do  # bits of a code, epsilon, power of the frequency
    name=${variant%%:*} codes=${variant#*:}
    bits=${codes%%:*} codes=${codes#*:}
    [ -e "$work/$name/variant.json" ] && continue
    echo "== level: $name"
    # shellcheck disable=SC2086
    "$delctl" train codes --model "$model" "$@" $longer $distilled --name "$name" --bits "$bits" \
        --epsilon "${codes%:*}" --frequency-power "${codes#*:}" --out "$work/$name"
done
for kind in clear nothing; do
    [ -e "$work/control-$kind/control.json" ] && continue
    echo "== control: $kind"
    # shellcheck disable=SC2086
    "$delctl" train control --kind "$kind" --model "$model" "$@" $longer $distilled --out "$work/control-$kind"
done

echo "== bundle"
levels="strict balanced open" published="published-strict published-balanced published-open"
texts=
for name in state_union inaugural grimm wizard_of_oz moby_dick pride_and_prejudice alice shakespeare wikipedia; do
    texts="$texts --attacker-text $work/text/$name.txt"
done
set --
for name in $levels $published; do
    set -- "$@" --variant "$work/$name"
done
"$delctl" bundle --name SmolLM2-135M-Instruct --model "$model" --projection "$work/projection" "$@" --table int8 \
    --out "$work/bundle" --overwrite

echo "== evaluation"
evaluate() { "$delctl" evaluate "$work/bundle" --model "$model" --quiet --json "$@"; }
text="--text $work/text/held_out.txt --prompt-tokens 64 --written 4"
controls="--control $work/control-clear --control $work/control-nothing"
# shellcheck disable=SC2086
evaluate $text --passages 96 $controls --variant strict --variant balanced --variant open >"$work/evaluation.json"
# shellcheck disable=SC2086
evaluate $text --passages 32 --control "$work/control-published-clear" --control "$work/control-published-nothing" \
    --variant published-strict --variant published-balanced --variant published-open >"$work/evaluation_published.json"
# shellcheck disable=SC2086
evaluate --chat "$work/chat.jsonl" $controls >"$work/evaluation_chat.json"

echo "== audit"
# shellcheck disable=SC2086
"$delctl" audit "$work/bundle" --model "$model" --text "$work/text/held_out.txt" $texts --quick \
    --attacker-budget standard,training=20,search=10 --variant strict --variant balanced --variant open \
    --out "$work/audit" --update --quiet
"$delctl" inspect "$work/bundle" | sed -n 2p
