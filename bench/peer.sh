#!/bin/sh
# flowood against the newest PyTorch, side by side: alternating runs, medians, then the ratios to
# the faster of eager and compiled PyTorch, each at its better thread count (1 or 2).
# SECONDS_EACH (default 3): time for each of the larger measurements. ROUNDS (default 1, of about
# ten minutes). Rows -avx2: both without AVX-512, which most users' machines lack. Rows -busy: while
# another process wants a core.
cd "$(dirname "$0")/.." || exit 1
python=build/peer/bin/python
each=${SECONDS_EACH:-3}
log=build/peer.log
: > $log
note() { sed "s/^bench \([^ ]*\)/$1 \1$2/" >> $log; }
# round SUFFIX OPTIONS-OF-BOTH OPTIONS-OF-OURS
round() {
    for threads in 1 2; do
        build/bench --seconds "$each" --threads $threads $2 $3 | tee -a /dev/stderr |
            note "flowood" "$1"
        for mode in "" --compile; do
            $python bench/peer.py --data data --seconds "$each" --threads $threads $2 $mode |
                note "torch${mode#-}" "$1" || echo "bench/peer.py $mode did not run" >&2
        done
    done
}
n=1
while [ $n -le "${ROUNDS:-1}" ]; do
    round "" "" ""
    if grep -q avx512f /proc/cpuinfo 2>/dev/null; then
        (ATEN_CPU_CAPABILITY=avx2 && export ATEN_CPU_CAPABILITY && round -avx2 --mlp "--simd avx2")
    fi
    sh -c 'while :; do :; done' &
    spin=$!
    trap 'kill $spin' EXIT
    round -busy --mlp ""
    kill $spin
    trap - EXIT
    n=$((n + 1))
done
awk '
    function median(list,    v, n, i, j, x) {
        n = split(list, v, " ")
        for (i = 2; i <= n; i++) { x = v[i] + 0
            for (j = i - 1; j > 0 && v[j] + 0 > x; j--) v[j + 1] = v[j]
            v[j + 1] = x }
        return v[int((n + 1) / 2)] + 0
    }
    # runs alternate 1 and 2 threads: a name seen an odd or even time within a program
    { key = $1 " " $2 " " $3; seen[key]++; threads = seen[key] % 2 ? 1 : 2
      list[key, threads] = list[key, threads] " " $4; names[$2 " " $3] = $5 }
    function best(program, name,    a, b) {
        a = median(list[program " " name, 1]); b = median(list[program " " name, 2])
        if (name ~ /memory/) return a < b ? a : b
        return a > b ? a : b
    }
    END {
        printf "%-40s %12s %12s %12s %8s\n", "", "flowood", "eager", "compiled", "ratio"
        for (name in names) {
            f = best("flowood", name); e = best("torch", name); c = best("torch-compile", name)
            if (f == 0 || e == 0) continue
            if (name ~ /memory/) rival = (c > 0 && c < e) ? c : e; else rival = c > e ? c : e
            printf "bench-peer %-29s %12.4g %12.4g %12.4g %8.2f\n", name, f, e, c, f / rival
        }
    }' $log | sort
