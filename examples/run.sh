#!/bin/sh
# The main job: train the failing baseline and the cured flows on FashionMNIST (or, without data,
# on the built-in synthetic pair), score what was never seen, print the table, draw samples.
# SECONDS_PER_MODEL (default 45) is the training time of each model; the ResNet with a bottleneck,
# slower by far, takes twice that. Everything goes to out/.
cd "$(dirname "$0")/.." || exit 1
tool=build/flowood
seconds=${SECONDS_PER_MODEL:-45}
presets="realnvp-tiny mlp-checker mlp-cycle mlp-cycle-2 cycle-resnet-neck"
mkdir -p out
if [ -r data/fashion/train-images-idx3-ubyte.gz ] &&
    [ -r data/mnist/t10k-images-idx3-ubyte.gz ]; then
    train=data/fashion/train-images-idx3-ubyte.gz
    in=data/fashion/t10k-images-idx3-ubyte.gz
    oods=data/mnist/t10k-images-idx3-ubyte.gz
    [ -r data/notmnist/t10k-images-idx3-ubyte.gz ] &&
        oods="$oods data/notmnist/t10k-images-idx3-ubyte.gz"
else
    echo "No FashionMNIST and MNIST here (see make data): this run uses the built-in synthetic"
    echo "pair instead, textured silhouettes against thin strokes."
    build/synthetic out || exit 1
    train=out/in-train-images-idx3-ubyte
    in=out/in-test-images-idx3-ubyte
    oods=out/ood-test-images-idx3-ubyte
fi
flags=""
for ood in $oods; do flags="$flags --ood $ood"; done

: > out/table.jsonl
for preset in $presets; do
    time=$seconds
    [ "$preset" = cycle-resnet-neck ] && time=$((2 * seconds))
    echo "== $preset: training for $time seconds"
    $tool train --preset "$preset" --data "$train" --seconds "$time" \
        --out "out/$preset.safetensors" || exit 1
    # shellcheck disable=SC2086
    $tool eval --model "out/$preset.safetensors" --in "$in" $flags --limit 2000 --json \
        > out/eval.jsonl || exit 1
    sed "s/^{/{\"preset\": \"$preset\", /" out/eval.jsonl >> out/table.jsonl
    $tool sample --model "out/$preset.safetensors" --n 64 --out "out/$preset-samples.png" || exit 1
done
rm -f out/eval.jsonl

echo
echo "Trained on $train, $seconds seconds each, cycle-resnet-neck $((2 * seconds)); first 2,000"
echo "of each test set."
echo "Likelihood as the score; OOD is positive: 0.5 is chance, below 0.5 the OOD set looks"
echo "likelier."
echo
awk -F '[:,]' '
    function value(name,    i) {
        for (i = 1; i < NF; i++)
            if (index($i, "\"" name "\"")) { gsub(/[ "}]/, "", $(i + 1)); return $(i + 1) }
    }
    BEGIN { printf "%-18s %-12s %8s %8s %8s %8s\n", "preset", "ood", "bpd in", "bpd ood", "auroc",
                   "fpr95" }
    {
        ood = value("ood"); n = split(ood, part, "/")
        printf "%-18s %-12s %8.3f %8.3f %8.3f %8.3f\n", value("preset"),
               (n > 1 ? part[n - 1] : ood), value("bpd_in"), value("bpd_ood"), value("auroc"),
               value("fpr95")
    }' out/table.jsonl
echo
echo "Models, samples and the numbers as JSON lines are in out/."
