#!/bin/sh
# The main job: trains the failing baseline and the cured flow on FashionMNIST (or, without data, on
# the built-in synthetic pair) and shows what each says of images from elsewhere; then the paper's
# table over more flows. SECONDS_PER_MODEL (default 45) is the training time of a model; the ResNet
# with a bottleneck, slower by far, takes twice that. Everything goes to out/.
cd "$(dirname "$0")/.." || exit 1
tool=build/flowood
seconds=${SECONDS_PER_MODEL:-45}
mkdir -p out
test_images=t10k-images-idx3-ubyte.gz
if [ -r data/fashion/train-images-idx3-ubyte.gz ] && [ -r data/mnist/$test_images ]; then
    train=data/fashion/train-images-idx3-ubyte.gz
    in=data/fashion/$test_images
    oods=data/mnist/$test_images
    [ -r data/notmnist/$test_images ] && oods="$oods data/notmnist/$test_images"
    if [ -r data/cifar10/test-images.npy ]; then
        mkdir -p out/cifar10-grey
        build/grey data/cifar10/test-images.npy out/cifar10-grey/images-idx3-ubyte &&
            oods="$oods out/cifar10-grey/images-idx3-ubyte"
    fi
else
    echo "No FashionMNIST and MNIST here (see make data): this run uses the built-in synthetic"
    echo "pair instead, textured silhouettes against thin strokes."
    mkdir -p out/strokes
    build/synthetic out || exit 1
    mv out/ood-test-images-idx3-ubyte out/strokes/images-idx3-ubyte || exit 1
    train=out/in-train-images-idx3-ubyte
    in=out/in-test-images-idx3-ubyte
    oods=out/strokes/images-idx3-ubyte
fi
flags=""
for ood in $oods; do flags="$flags --ood $ood"; done

# model PRESET SECONDS LIMIT OPTIONS...: trains, samples, adds a row a score and set to the table
: > out/table.jsonl
model() {
    preset=$1 time=$2 limit=$3
    shift 3
    echo "== $preset: training for $time seconds"
    $tool train --preset "$preset" --data "$train" --seconds "$time" "$@" \
        --out "out/$preset.safetensors" &&
        # shellcheck disable=SC2086
        $tool eval --model "out/$preset.safetensors" --in "$in" $flags --limit "$limit" --json \
            > out/eval.jsonl &&
        sed "s/^{/{\"preset\": \"$preset\", /" out/eval.jsonl >> out/table.jsonl &&
        $tool sample --model "out/$preset.safetensors" --n 64 --out "out/$preset-samples.png" ||
        exit 1
}

# Only the cured flow is calibrated; the others train on all images.
model realnvp-tiny "$seconds" 2000 --holdout 0
model mlp-cycle "$seconds" 10000
echo
awk -f examples/json.awk -f examples/run.awk -v what=detector out/table.jsonl
echo
model mlp-checker "$seconds" 2000 --holdout 0
model mlp-cycle-2 "$seconds" 2000 --holdout 0
model cycle-resnet-neck $((2 * seconds)) 2000 --holdout 0
rm -f out/eval.jsonl

echo
echo "Trained on $train,"
echo "$seconds seconds each, cycle-resnet-neck $((2 * seconds)); first 2,000 of each test set, with"
echo "mlp-cycle all."
echo
awk -f examples/json.awk -f examples/run.awk -v what=detector out/table.jsonl
echo
awk -f examples/json.awk -f examples/run.awk -v what=paper out/table.jsonl
echo
echo "Models, samples and the numbers as JSON lines are in out/."
