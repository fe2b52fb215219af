#!/bin/sh
# The command-line tool on good and bad input: each failure is one line and exit status 1 (usage: 2).
tool=$PWD/build/flowood
[ -x "$tool" ] || { echo "build/flowood is missing: run make first"; echo "0 passed, 1 failed"; exit 1; }
passed=0 failed=0 skipped=0
ok() { passed=$((passed + 1)); }
bad() { failed=$((failed + 1)); echo "test_cli: failed: $*"; }
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
build/synthetic "$dir" 600 || bad "synthetic"
cd "$dir" || exit 1
train=in-train-images-idx3-ubyte in=in-test-images-idx3-ubyte ood=ood-test-images-idx3-ubyte

works() { # what, command...
    what=$1; shift
    if "$@" > log 2> err; then ok; else bad "$what: $(tail -n 1 err)"; fi
}
refuses() { # status, words that the one line must have, command...
    want=$1 words=$2; shift 2
    "$@" > log 2> err
    status=$?
    lines=$(grep -vc '^step ' err)
    if [ $status = "$want" ] && [ "$lines" = 1 ] && grep -q -- "$words" err; then ok
    else bad "$* -> status $status, $lines lines: $(head -n 2 err)"; fi
}

# the whole round: train, resume, score, sample, check, info
works train "$tool" train --data $train --preset mlp-cycle --steps 6 --batch 32 --seed 3 --out whole.st
works "train, first half" "$tool" train --data $train --preset mlp-cycle --steps 3 --batch 32 --seed 3 --out half.st
works resume "$tool" train --data $train --resume half.st --steps 6 --out resumed.st
cmp -s whole.st resumed.st && ok || bad "resumed training differs from uninterrupted training"
works "one thread" "$tool" train --data $train --preset mlp-cycle --steps 6 --batch 32 --seed 3 --threads 1 --out one.st
cmp -s whole.st one.st && ok || bad "the number of threads changes the result"
works "small memory" "$tool" train --data $train --preset mlp-cycle --steps 6 --batch 32 --seed 3 --memory 1 --out small.st
works "scores" "$tool" score --model whole.st --data $in --out a.npy
works "scores again" "$tool" score --model small.st --data $in --out b.npy
cmp -s a.npy b.npy && ok || bad "the memory budget changes the result"
works "text scores" "$tool" score --model whole.st --data $in --limit 5 --score latent
[ "$(wc -l < log)" = 5 ] && ok || bad "five scores expected"
works eval "$tool" eval --model whole.st --in $in --ood $ood --score likelihood --score latent --json
[ "$(wc -l < log)" = 2 ] && ok || bad "two JSON lines expected"
for key in score ood n_in n_ood auroc aupr_in aupr_out fpr95 bpd_in bpd_ood; do
    grep -q "\"$key\": " log && ok || bad "no $key in the JSON"
done
works "eval table" "$tool" eval --model whole.st --in $in --ood $ood
works "sample" "$tool" sample --model whole.st --n 5 --temperature 0.7 --out s.png
[ "$(head -c 4 s.png | tail -c 3)" = PNG ] && ok || bad "no PNG"
works "sample npy" "$tool" sample --model whole.st --n 5 --out s.npy
works check "$tool" check --model whole.st --data $in
works "check without data" "$tool" check --model whole.st
works info "$tool" info --model whole.st
grep -v '^#' log > spec.txt
works "spec" "$tool" train --data $train --spec spec.txt --steps 1 --out spec.st
works presets "$tool" presets
works help "$tool" --help
works "evaluation while training" "$tool" train --data $train --steps 30 --batch 100 --eval-in $in --eval-ood $ood --out e.st
[ "$(grep -c auroc log)" = 5 ] && ok || bad "a line of metrics for each of five epochs expected"

# usage
refuses 2 "command is needed" "$tool"
refuses 2 "unknown command" "$tool" frain
refuses 2 "unknown option" "$tool" train --dada x
refuses 2 "not an option of" "$tool" info --steps 4
refuses 2 "needs a value" "$tool" train --data
refuses 2 "whole number" "$tool" train --data $train --steps x --out o
refuses 2 "at least 0" "$tool" train --data $train --lr -1 --out o
refuses 2 "needs --data" "$tool" train
refuses 2 "needs --model" "$tool" eval --in $in

# contradictions and bad files
refuses 1 "one of them" "$tool" train --data $train --preset mlp-cycle --spec spec.txt --out o
refuses 1 "contradicts" "$tool" train --data $train --resume half.st --seed 4 --out o
refuses 1 "both or none" "$tool" train --data $train --eval-in $in --out o
refuses 1 "not known" "$tool" train --data $train --preset nope --out o
refuses 1 "not known" "$tool" eval --model whole.st --in $in --ood $ood --score nope
refuses 1 "missing-file" "$tool" train --data missing-file --out o
refuses 1 "missing-file" "$tool" info --model missing-file
refuses 1 "nowhere" "$tool" train --data $train --steps 1 --out nowhere/model
head -c 5000 $train > short-idx
refuses 1 "short-idx" "$tool" train --data short-idx --out o
: > empty-idx
refuses 1 "empty-idx" "$tool" train --data empty-idx --out o
printf 'hello, this is no data file at all' > text-file
refuses 1 "text-file" "$tool" train --data text-file --out o
printf '\000\000\010\003\000\000\000\000\000\000\000\034\000\000\000\034' > zero-idx
refuses 1 "zero-idx" "$tool" train --data zero-idx --out o
refuses 1 "20x20\|shape\|samples are" "$tool" score --model whole.st --data a.npy
gzip -c $train | head -c 20000 > short.gz
refuses 1 "short.gz" "$tool" train --data short.gz --out o
{ printf '\000\000\010\003\000\000\000\001\000\000\000\034\000\000\000\034'; head -c 30000000 /dev/zero; } | gzip -c > endless.gz
refuses 1 "endless.gz" "$tool" train --data endless.gz --out o
printf 'input 1x28x28\ndequantize\nlogit alpha=2\n' > bad-spec
refuses 1 "alpha=2" "$tool" train --data $train --spec bad-spec --out o
printf 'input 1x28x28\ncoupling mask=cycle:0 net=mlp hiden=4\n' > bad-spec
refuses 1 "line 2" "$tool" train --data $train --spec bad-spec --out o
printf 'input 1x20x20\ncoupling mask=cycle:0 net=mlp hidden=4\n' > bad-spec
refuses 1 "20x20" "$tool" train --data $train --spec bad-spec --steps 1 --out o

# a checkpoint cut at every 64th byte of its head, and at some places later, is refused
printf 'input 1x28x28\ndequantize\nlogit\ncoupling mask=cycle:0 net=mlp hidden=2 bottleneck=1\n' > tiny
works "tiny model" "$tool" train --data $train --spec tiny --steps 1 --batch 8 --out tiny.st
size=$(wc -c < tiny.st)
at=0
while [ $at -lt "$size" ]; do
    head -c $at tiny.st > cut.st
    if "$tool" info --model cut.st > log 2> err; then bad "a model of $at of $size bytes loads"
    elif [ "$(wc -l < err)" = 1 ]; then ok; else bad "cut at $at: $(head -n 2 err)"; fi
    at=$((at + (at < 4096 ? 64 : 1024)))
done
sed 's/hidden=2 /hidden=3 /' tiny.st > other.st
refuses 1 "architecture" "$tool" info --model other.st

# a full disk, where a small file system can be mounted
mkdir full
if mount -t tmpfs -o size=64k tmpfs full 2>/dev/null; then
    refuses 1 "full/m.st" "$tool" train --data $train --steps 1 --batch 8 --out full/m.st
    [ -z "$(ls -A full)" ] && ok || bad "a failed save leaves $(ls full)"
    umount full
else
    skipped=$((skipped + 1))
fi
"$tool" presets > /dev/full 2> err && bad "a full standard output goes unnoticed" || ok
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
