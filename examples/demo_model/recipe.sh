#!/bin/sh
# Trains the demo that ships with the package, from text files to bundle. Every step resumes where it was interrupted.
#
#   sh recipe.sh TEXT_DIRECTORY WORK_DIRECTORY [DELCTL]
#
# TEXT_DIRECTORY holds the public-domain texts that prepare_text.py names. About 70 minutes on 2 cores, most of it in the
# base model. What the run that made the shipped demo printed is in recipe.log.
set -eu
source=$1 work=$2 delctl=${3:-delctl}
here=$(dirname "$0")

"${PYTHON:-python3}" "$here/prepare_text.py" "$source" "$work/text"
set --
for name in state_union inaugural grimm wizard_of_oz moby_dick pride_and_prejudice alice shakespeare; do
    set -- "$@" --text "$work/text/$name.txt"
done

echo "== base model"
"$delctl" train base "$@" --steps 2400 --compile --quiet --out "$work/base"

echo "== stage 1: projection"
"$delctl" train projection --model "$work/base" "$@" --steps 200 --quiet --out "$work/projection"

for variant in strict:0.02 balanced:0.10 open:0.30; do
    echo "== stage 2: ${variant%%:*}, nearest-neighbour ASR ${variant##*:}"
    "$delctl" train soft-prompt --model "$work/base" --projection "$work/projection" "$@" \
        --name "${variant%%:*}" --nearest-asr "${variant##*:}" --steps 400 --quiet --out "$work/${variant%%:*}"
done

echo "== bundle"
"$delctl" bundle --name del-demo-llama --model "$work/base" --projection "$work/projection" \
    --variant "$work/strict" --variant "$work/balanced" --variant "$work/open" --out "$work/bundle"

echo "== audit"
"$delctl" audit "$work/bundle" --model "$work/base" --text "$here/held_out.txt" --out "$work/audit" --update --quiet

# What ships: the model without its checkpoints, and the bundle.
mkdir -p "$work/model"
for file in config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json; do
    cp "$work/base/$file" "$work/model/$file"
done
