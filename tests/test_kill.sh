#!/bin/sh
# kill -9 at random moments of a training run that saves all the time, every second time inside a
# save: the model always loads and is never less trained than before. KILLS=200 is the long form.
tool=$PWD/build/flowood
name=test_kill
. tests/tool.inc
kills=${KILLS:-6} inside=0
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
build/synthetic "$dir" 600 || bad "synthetic"
cd "$dir" || exit 1
data=in-train-images-idx3-ubyte

steps() { "$tool" info m 2> err | sed -n 's/^# trained for \([0-9]*\) .*/\1/p'; }
# Waits until a file that is being written appears; 1: training has ended before.
in_a_save() {
    while kill -0 "$1" 2>/dev/null; do
        for part in m.*.part; do
            [ -s "$part" ] && return 0
        done
    done
    return 1
}
random() { od -An -N2 -tu2 /dev/urandom | tr -d ' '; }

"$tool" train --data $data --preset mlp-cycle --steps 2 --batch 16 --threads 1 --holdout 0 --out m > log 2> err ||
    bad "first training: $(cat err)"
before=$(steps)
[ "$before" = 2 ] && ok || bad "first training: '$before' steps"
i=0
while [ $i -lt "$kills" ]; do
    i=$((i + 1))
    # a save a second; held-out data would only make saves rarer
    "$tool" train --data $data --resume m --out m --seconds 60 --threads 1 --holdout 0 \
        --save-every 0.0167 > log 2> err &
    pid=$!
    if [ $((i % 2)) = 0 ]; then
        in_a_save $pid || bad "training ended: $(cat err)"
        # now and then a save is done before the kill, so that the model gets further
        if [ $((i % 4)) = 0 ]; then
            sleep 0.7
            in_a_save $pid || bad "training ended: $(cat err)"
        fi
    else
        sleep "$(random | awk '{print 0.2 + $1 / 65536 * 2}')"
    fi
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    for part in m.*.part; do
        [ -s "$part" ] && inside=$((inside + 1))
    done
    rm -f m.*.part
    now=$(steps)
    if [ -n "$now" ] && [ "$now" -ge "$before" ]; then ok
    else bad "kill $i: $before steps became '$now': $(cat err)"; fi
    before=${now:-$before}
done
[ "$before" -gt 2 ] && ok || bad "no run got further"

# with held-out samples the best state so far is saved; the last run, which ends, calibrates it
"$tool" train --data $data --preset mlp-cycle --steps 60 --batch 16 --threads 1 --out h > log 2> err ||
    bad "first training with held-out samples: $(cat err)"
before=60
for i in 1 2; do
    "$tool" train --data $data --resume h --out h --seconds 60 --threads 1 --save-every 0.0001 > log 2> err &
    pid=$!
    sleep "$(random | awk '{print 0.3 + $1 / 65536 * 1.5}')"
    kill -9 $pid 2>/dev/null
    wait $pid 2>/dev/null
    now=$("$tool" info h 2> err | sed -n 's/^# trained for \([0-9]*\) .*/\1/p')
    if [ -n "$now" ] && [ "$now" -ge "$before" ]; then ok
    else bad "held out, kill $i: $before steps became '$now': $(cat err)"; fi
    before=${now:-$before}
done
rm -f h.*.part
"$tool" train --data $data --resume h --out h --steps $((before + 1)) --threads 1 > log 2> err &&
    "$tool" detect h --data $data --alpha 0.1 --limit 20 --threads 1 > log 2> err && ok ||
    bad "no detector after the kills: $(cat err)"
[ $((inside * 3)) -ge "$kills" ] && ok || bad "only $inside of $kills kills were inside a save"
echo "$kills kills, $inside inside a save, $before steps"
echo "$passed passed, $failed failed"
[ $failed = 0 ]
