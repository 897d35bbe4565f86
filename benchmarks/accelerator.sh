#!/usr/bin/env bash
# The rows of benchmarks/README.md that need an accelerator, each a command of its own that writes NAME.json, NAME.png.
#
#   benchmarks/accelerator.sh --list           what there is to run
#   benchmarks/accelerator.sh                  everything that is not there yet
#   benchmarks/accelerator.sh 350m 1.3b        these
#
# OUT: folder of the results (benchmarks); PYTHON: the interpreter (python3); PEAK_TFLOPS: what the card can do at best
# in bf16 (989: H100 SXM, H200); EXTRA: more options for each, such as "--steps 12"; LIMIT: seconds for each (600).
# Runs from the source, without installing. Results are never overwritten, and a row that fails does not end the others.
#
# Nothing has run on a GPU yet. By a reader's estimate all rows take some 20 minutes of an H200; where time is short, in
# this order:
#
#   EXTRA="--steps 12" benchmarks/accelerator.sh 1.3b 350m 350m-ways 1.3b-compiled
#   benchmarks/accelerator.sh 1.3b-memory-fp32-moments
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

OUT=${OUT:-benchmarks}
PYTHON=${PYTHON:-python3}
PEAK_TFLOPS=${PEAK_TFLOPS:-989}

# Ranks are h/8 and h/4 unless said. Memory: one sequence, so that activations are small, and what is held is what counts.
BF16="--dtype bf16 --seq-len 512 --peak-tflops $PEAK_TFLOPS"
MEMORY="$BF16 --factor-dtype bf16 --sequences 1 --checkpoint-activations --steps 6 --peak-memory"
rows() {
  cat <<END
350m            --model 350m $BF16 --sequences 64 --switching-cost --methods full switchlora lora-adapter peft
350m-ways       --model 350m $BF16 --sequences 64 --methods full switchlora switchlora-dense switchlora-fused
350m-compiled   --model 350m $BF16 --sequences 64 --compile --methods full switchlora lora-adapter peft
1.3b            --model 1.3b $BF16 --sequences 32 --methods full switchlora switchlora-alternate
1.3b-switching  --model 1.3b $BF16 --sequences 16 --switching-cost --methods full switchlora
1.3b-adapters   --model 1.3b $BF16 --sequences 32 --methods full lora-adapter peft
1.3b-compiled   --model 1.3b $BF16 --sequences 32 --compile --methods full switchlora
1.3b-memory-fp32-moments  --model 1.3b $MEMORY --ranks 512 --moments fp32 --methods full switchlora switchlora-fused
1.3b-memory-bf16-moments  --model 1.3b $MEMORY --ranks 512 --moments bf16 --methods full switchlora switchlora-fused
END
}

if [ "${1:-}" = --list ]; then
  rows | while read -r name words; do echo "$name: switchlora bench $words --output $OUT/$name.json"; done
  exit 0
fi

for wanted in "$@"; do
  rows | grep -q "^$wanted " || { echo "no row $wanted; $0 --list says which there are" >&2; exit 2; }
done

failed=0
while read -r name words; do
  if [ $# -gt 0 ] && [[ " $* " != *" $name "* ]]; then continue; fi
  if [ -e "$OUT/$name.json" ]; then echo "$name: there already"; continue; fi
  # shellcheck disable=SC2086  # the options are words
  PYTHONPATH=src timeout "${LIMIT:-600}" "$PYTHON" -m switchlora bench $words ${EXTRA:-} --device cuda \
    --output "$OUT/$name.json" </dev/null || { echo "$name: failed" >&2; failed=1; }
done < <(rows)
exit $failed
