#!/bin/sh
# The paper's table and figure 7 with error bars: trains every model of the list below with several
# seeds on FashionMNIST and scores MNIST, notMNIST and the built-in synthetic pair. About an hour on
# two cores. Training is counted in steps, so that any machine gets the same numbers.
#
#   SEEDS="1 2 3"   which seeds        SCALE=1   factor on the number of steps
#   JOBS=2          runs at a time, each on one thread; default: the cores of this machine
#
# Each finished run leaves a file under out/study, and is not repeated: stop and start as you like.
# Writes out/study/results.jsonl, table.md, figure7.svg and steps.svg.
cd "$(dirname "$0")/.." || exit 1
tool=build/flowood
dir=out/study
export SEEDS="${SEEDS:-1 2 3}" SCALE="${SCALE:-1}"
JOBS=${JOBS:-$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)}

# name, preset, steps. `name@` is evaluated on its way too, at 1/8, 1/4 and 1/2 of its steps.
list() {
    cat <<'END'
realnvp-tiny@ realnvp-tiny 400
mlp-checker@ mlp-checker 2200
mlp-horizontal mlp-horizontal 2200
mlp-cycle@ mlp-cycle 8800
mlp-bottleneck-1 mlp-cycle:1 2200
mlp-bottleneck-2 mlp-cycle:2 2200
mlp-bottleneck-5 mlp-cycle:5 2200
mlp-bottleneck-10 mlp-cycle:10 2200
mlp-bottleneck-30 mlp-cycle:30 2200
mlp-bottleneck-100 mlp-cycle:100 2200
checker8 checker8 500
horizontal8 horizontal8 500
cycle-resnet cycle-resnet 500
resnet-bottleneck-1 cycle-resnet-neck:1 1000
resnet-bottleneck-2 cycle-resnet-neck:2 1000
resnet-bottleneck-5 cycle-resnet-neck:5 1000
resnet-bottleneck-10 cycle-resnet-neck:10 1000
resnet-bottleneck-30 cycle-resnet-neck:30 1000
resnet-bottleneck-100 cycle-resnet-neck:100 1000
features features 400
END
}

idx=images-idx3-ubyte
sets() { # of the run $1: training data, test data, then OOD sets
    case $1 in
    features*) set -- data/features/fashion-train.npy data/features/fashion-test.npy \
                      data/features/mnist-test.npy data/features/notmnist-test.npy ;;
    *) set -- data/fashion/train-$idx.gz data/fashion/t10k-$idx.gz data/mnist/t10k-$idx.gz \
              data/notmnist/t10k-$idx.gz $dir/silhouettes-$idx $dir/strokes-$idx ;;
    esac
    for file; do [ -r "$file" ] && printf '%s ' "$file"; done
}

# evaluate NAME SEED STEPS FILES...: one JSON line a score and OOD set, into out/study
evaluate() {
    name=$1 seed=$2 steps=$3 in=$5
    result=$dir/$name-$steps-$seed.jsonl
    shift 5
    oods=""
    for file; do oods="$oods --ood $file"; done
    # shellcheck disable=SC2086
    $tool eval --model "$dir/$name-$seed.safetensors" --in "$in" $oods --limit 2000 --threads 1 \
        --score likelihood --score latent --json > "$result.part" || return 1
    sed "s/^{/{\"run\": \"$name\", \"seed\": $seed, \"steps\": $steps, /" "$result.part" > "$result"
    rm -f "$result.part"
}

# one NAME PRESET STEPS SEED: trains, on the way evaluates, and keeps the lines
if [ "$1" = one ]; then
    name=${2%@} preset=$3 seed=$5
    model=$dir/$name-$seed.safetensors
    whole=$(awk "BEGIN { n = int($4 * $SCALE + 0.5); print n < 8 ? 8 : n }")
    [ -r "$dir/$name-$whole-$seed.jsonl" ] && exit 0
    parts="$whole"
    case $2 in *@) parts="$((whole / 8)) $((whole / 4)) $((whole / 2)) $whole" ;; esac
    files=$(sets "$name")
    rm -f "$model"
    for steps in $parts; do
        from="--preset $preset --seed $seed"
        [ -r "$model" ] && from="--resume $model"
        # shellcheck disable=SC2086
        $tool train $from --data "${files%% *}" --steps "$steps" --threads 1 --save-every 0 \
            --out "$model" > "$dir/$name-$seed.log" 2>&1 &&
            evaluate "$name" "$seed" "$steps" $files || { tail -n 2 "$dir/$name-$seed.log"; exit 1; }
    done
    rm -f "$dir/$name-$seed.log"
    echo "$name, seed $seed: done"
    exit 0
fi

if [ ! -r data/fashion/train-$idx.gz ] || [ ! -r data/mnist/t10k-$idx.gz ]; then
    echo "the study needs FashionMNIST and MNIST: make data" >&2
    exit 1
fi
mkdir -p $dir
if [ ! -r $dir/strokes-$idx ]; then
    build/synthetic $dir 10000 && mv $dir/in-test-$idx $dir/silhouettes-$idx &&
        mv $dir/ood-test-$idx $dir/strokes-$idx && rm -f $dir/in-train-$idx || exit 1
fi
for seed in $SEEDS; do
    list | while read -r name preset steps; do
        if [ "$name" = features ] && [ ! -r data/features/fashion-train.npy ]; then
            continue
        fi
        echo "$name $preset $steps $seed"
    done
done | xargs -n 4 -P "$JOBS" sh examples/study.sh one || exit 1
cat $dir/*-*-*.jsonl > $dir/results.jsonl
awk -f examples/json.awk -f examples/study.awk -v out=$dir $dir/results.jsonl && cat $dir/table.md
