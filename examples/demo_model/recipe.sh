#!/bin/sh
# Trains the demo that ships with the package, from text files to bundle. Every step resumes where it was interrupted.
#
#   sh recipe.sh TEXT_DIRECTORY WORK_DIRECTORY [DELCTL]
#
# TEXT_DIRECTORY holds the public-domain texts that prepare_text.py names. About two hours on 2 cores, most of it in the
# base model and the encoder. What the run that made the shipped demo printed is in recipe.log.
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

echo "== stage 1 with the noise in the loop: encoder, MAP ASR 0.12"
"$delctl" train encoder --model "$work/base" --projection "$work/projection" "$@" \
    --map-asr 0.12 --decoder linear --steps 800 --quiet --out "$work/encoder"

for variant in strict:0.065 balanced:0.10 open:0.28; do
    echo "== stage 2: ${variant%%:*}, MAP ASR ${variant##*:}"
    "$delctl" train soft-prompt --model "$work/base" --projection "$work/encoder" "$@" \
        --name "${variant%%:*}" --map-asr "${variant##*:}" --steps 400 --quiet --out "$work/${variant%%:*}"
done

echo "== bundle"
"$delctl" bundle --name del-demo-llama --model "$work/base" --projection "$work/encoder" \
    --variant "$work/strict" --variant "$work/balanced" --variant "$work/open" --out "$work/bundle"

echo "== audit"
"$delctl" audit "$work/bundle" --model "$work/base" --text "$here/held_out.txt" --out "$work/audit" --update --quiet
"$delctl" inspect "$work/bundle" | sed -n 2p

# What ships: the model without its checkpoints, and the bundle.
mkdir -p "$work/model"
for file in config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json; do
    cp "$work/base/$file" "$work/model/$file"
done
