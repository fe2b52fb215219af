#!/bin/sh
# The command-line tool on good and bad input: each failure is one line, with exit status 2 for wrong
# usage and 1 for what goes wrong at run time.
home=$PWD tool=$PWD/build/flowood
name=test_cli beside='^step '
. tests/tool.inc
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
build/synthetic "$dir" 600 || bad "synthetic"
cd "$dir" || exit 1
train=in-train-images-idx3-ubyte in=in-test-images-idx3-ubyte ood=ood-test-images-idx3-ubyte


# the whole round: train, resume, score, sample, check, info; a small flow is fast
printf 'input 1x28x28\ndequantize\nlogit\n4* coupling mask=cycle:%% net=mlp hidden=48 bottleneck=4\n' > small
works "a preset" "$tool" train --data $train --preset mlp-cycle --steps 1 --batch 8 --out preset.st
works train "$tool" train --data $train --spec small --steps 6 --batch 32 --seed 3 --out whole.st
works "train, first half" "$tool" train --data $train --spec small --steps 3 --batch 32 --seed 3 --out half.st
works resume "$tool" train --data $train --resume half.st --steps 6 --out resumed.st
cmp -s whole.st resumed.st && ok || bad "resumed training differs from uninterrupted training"
refuses 1 "half.st was trained on 540 samples, these are 590" "$tool" train --data $train --resume half.st --holdout 10 --out o
for part in "--steps 3 --spec small --seed 3 --out h0.st" "--resume h0.st --steps 6 --out r0.st" "--steps 6 --spec small --seed 3 --out w0.st"; do
    works "resume without held-out samples" "$tool" train --data $train --batch 32 --holdout 0 $part
done
cmp -s w0.st r0.st && ok || bad "resumed training differs without held-out samples"
works "one thread" "$tool" train --data $train --spec small --steps 6 --batch 32 --seed 3 --threads 1 --out one.st
cmp -s whole.st one.st && ok || bad "the number of threads changes the result"
works "small memory" "$tool" train --data $train --spec small --steps 6 --batch 32 --threads 1 --seed 3 --memory 1 --out small.st
works "scores" "$tool" score --model whole.st --data $in --out a.npy
works "scores again" "$tool" score --model small.st --data $in --out b.npy
cmp -s a.npy b.npy && ok || bad "the memory budget changes the result"
works "text scores" "$tool" score --model whole.st --data $in --limit 5 --score latent
[ "$(wc -l < log)" = 5 ] && ok || bad "five scores expected"
works "several scores" "$tool" score --model whole.st --data $in --limit 5 --score latent --score likelihood
[ "$(awk 'NF == 2' log | wc -l)" = 5 ] && ok || bad "five lines of two scores expected"
works "scores as CSV" "$tool" score whole.st --data $in --limit 5 --score latent --score likelihood --out s.csv
[ "$(head -n 1 s.csv)" = latent,likelihood ] && ok || bad "no header: $(head -n 1 s.csv)"
"$tool" score whole.st --data $in --limit 5 --score latent --score likelihood | tr ' ' , > text
sed 1d s.csv | cmp -s - text && ok || bad "the CSV differs from the text"
works "scores as a matrix" "$tool" score --model whole.st --data $in --limit 5 --score latent --score likelihood --out s.npy
grep -aq "'shape': (5, 2)" s.npy && ok || bad "5 x 2 scores expected"
# the detector: none, fitted, in files of every kind, refused where it promises too much
cp w0.st decides.st
refuses 1 "no detector" "$tool" detect --model decides.st --data $in --alpha 0.1
works calibrate "$tool" calibrate --model decides.st --data $in
grep -q "decides by complexity: fitted to 60 samples, ranked among 60 others" log && ok || bad "calibrate says $(cat log)"
works detect "$tool" detect --model decides.st --data $ood --alpha 0.1 --limit 50 --out v.csv
grep -q "^[0-9]* of 50 samples of $ood are out of distribution" log && ok || bad "detect says $(cat log)"
[ "$(head -n 1 v.csv)" = "index,p_value,ood,complexity" ] && [ "$(wc -l < v.csv)" = 51 ] && ok || bad "verdicts as text"
works "detect, json" "$tool" detect --model decides.st --data $ood --alpha 0.1 --limit 50 --bh --out v.jsonl
grep -q '^{"index": 49, "p_value": [0-9.e-]*, "ood": [01], "complexity": ' v.jsonl && ok || bad "verdicts as json"
works "detect, npy" "$tool" detect --model decides.st --data $ood --alpha 0.1 --confidence 0.9 --out v.npy
works "a fitted score" "$tool" score decides.st --data $in --score typicality --score pca --limit 3
# --in and --ood swapped; a detector of two samples, which cannot keep any promise below a half
works "swapped" "$tool" eval decides.st --in $ood --ood $in
grep -q "100 % of $ood are alarms.*swapped" err && ok || bad "swapped sets go unnoticed: $(cat err)"
works "not swapped" "$tool" eval decides.st --in $in --ood $ood
[ ! -s err ] && ok || bad "doubts: $(cat err)"
cp decides.st few.st
works "calibrate with 4" "$tool" calibrate few.st --data $in --limit 4
works "few" "$tool" eval few.st --in $in --ood $ood
grep -q "no alarm is possible at an alpha below 0.33: it ranks among 2 samples only" log && ok || bad "few: $(cat log)"
refuses 1 "1 samples: 2 at least" "$tool" calibrate few.st --data $in --limit 1
works "weights alone" "$tool" export few.st --out alone.st
"$tool" info alone.st > log
grep -q "^# weights alone" log && ! grep -q "trained for" log && ok || bad "an export says $(cat log)"
# rounded weights are others than those that the detector was fitted to: said, and mended
works "export of 16 bits, with a detector" "$tool" export decides.st --f16 --out decides16.st
[ "$(wc -l < err)" = 1 ] && grep -q "decides nothing: .* --calibrate FILE" err && ok || bad "not a word about the detector"
refuses 1 "weights have changed since" "$tool" detect --model decides16.st --data $in --alpha 0.1
works "export that decides" "$tool" export decides.st --f16 --calibrate $in --out decides16.st
grep -q "decides by complexity: fitted to 60 samples" log && [ ! -s err ] && ok || bad "export says $(cat log err)"
works "detect with 16 bits" "$tool" detect --model decides16.st --data $in --alpha 0.1
refuses 1 "needs 999 calibration samples, there are 60" "$tool" detect --model decides.st --data $ood --alpha 0.001
refuses 2 "two promises" "$tool" detect --model decides.st --data $ood --alpha 0.1 --bh --confidence 0.9
refuses 2 "--alpha" "$tool" detect --model decides.st --data $ood --alpha 1.5
refuses 1 "fo_calibrate" "$tool" score w0.st --data $in --score typicality
# the detector that training leaves: of 60 held-out samples 30 choose the step, 30 calibrate
"$tool" info whole.st | grep -q "^# decides by complexity: fitted to 15 samples, ranked among 15 others$" && ok ||
    bad "no detector: $("$tool" info whole.st | tail -n 2)"
"$tool" info w0.st | grep -q decides && bad "a detector without held-out samples" || ok
works "two held-out samples are too few" "$tool" train --data $train --spec small --steps 1 --holdout 2 --out two.st
grep -q decides log && bad "a detector of one sample" || ok
works encode "$tool" encode --model whole.st --data $in --limit 7 --out z.npy
grep -aq "'shape': (7, 784)" z.npy && ok || bad "7 x 784 latents expected"
refuses 1 "take --preset features" "$tool" train --data z.npy --preset mlp-cycle --out o.st
works eval "$tool" eval --model whole.st --in $in --ood $ood --score likelihood --score latent --json
[ "$(wc -l < log)" = 3 ] && ok || bad "three JSON lines expected"
[ "$(grep -c '"score": "detector".*"power": {"0.01": [01][.0-9]*, "0.05": [01][.0-9]*, "0.1": [01][.0-9]*}, "false_alarms": {"0.01"' log)" = 1 ] &&
    ok || bad "the row of the detector: $(tail -n 1 log)"
for key in score ood protocol n_in n_ood auroc auroc_low auroc_high aupr_in aupr_out fpr95 fpr95_in bpd_in bpd_ood; do
    grep -q "\"$key\": " log && ok || bad "no $key in the JSON"
done
works "eval table" "$tool" eval --model whole.st --in $in --ood $ood
works "eval, all scores" "$tool" eval --model whole.st --in $in --ood $ood --score all
[ "$(grep -cE '^(likelihood|latent|volume|typicality|complexity|density-of-states|layers|normality|neighbour|pca|detector) ' log)" = 11 ] && ok ||
    bad "11 rows expected: $(cat log)"
[ "$(wc -l < err)" = 1 ] && grep "^flowood: left out: " err | grep "gradient (needs calibrate --score)" | grep -q "ratio (needs eval --background)" &&
    ok || bad "left out: $(cat err)"
works "eval, all scores without a detector" "$tool" eval --model w0.st --in $in --ood $ood --score all --background whole.st --json
[ "$(cut -d '"' -f 4 log | tr '\n' ' ')" = "likelihood latent volume ratio " ] && ok || bad "four scores expected: $(cat log)"
works "another norm" "$tool" eval --model whole.st --in $in --ood $ood --norm batch
grep -q "left out: detector" err && [ "$(grep -c detector log)" = 0 ] && ok || bad "a detector for another norm"
# the table of make run
"$tool" eval --model whole.st --in $in --ood $ood --json | sed 's/^{/{"preset": "mlp-cycle", /' > table.jsonl
awk -f "$home/examples/json.awk" -f "$home/examples/run.awk" -v what=detector table.jsonl > log
grep -qE "^$ood +(0.000 )? +[01]\.[0-9]{3} +[01]\.[0-9]{3} +[0-9.]+ % +[0-9.]+ %$" log &&
    grep -qE "^False alarms on the 120 test images: [0-9.]+ % at 1 %, [0-9.]+ % at 5 %\.$" log && ok || bad "run.awk: $(cat log)"
awk -f "$home/examples/json.awk" -f "$home/examples/run.awk" -v what=paper table.jsonl | grep -qE "^mlp-cycle +$ood( +[0-9.]+){4}$" && ok || bad "run.awk, the paper's table"
# grey: 0.299 * 100 + 0.587 * 200 + 0.114 * 50 = 153
{ printf '\223NUMPY\001\000\166\000'; printf '%-117s\n' "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 3, 4, 4), }"
  for level in 144 310 062; do for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do printf "\\$level"; done; done; } > colour.npy
works grey "$home/build/grey" colour.npy grey-idx 2
[ "$(od -An -tu1 -j16 grey-idx | tr -s " ")" = " 153 153 153 153" ] && ok || bad "grey: $(od -An -tu1 grey-idx)"
refuses 1 "three channels" "$home/build/grey" $in grey-idx
refuses 2 "leave them out" "$tool" eval whole.st --in $in --ood $ood --score all --score latent
refuses 2 "unknown score all" "$tool" score whole.st --data $in --score all
# samples by class: labels 0 1 0 1 ...
halves() { i=0; while [ $i -lt "$1" ]; do printf '\000\001'; i=$((i + 1)); done; }
{ printf '\000\000\010\001\000\000\000\170'; halves 60; } > in-labels
{ printf '\000\000\010\001\000\000\002\130'; halves 300; } | gzip -c > train-labels.gz
works "train on a class" "$tool" train --data $train --labels train-labels.gz --class 1 --spec small --steps 2 --out class.st
grep -q "fitted to 7 samples, ranked among 8 others" log && ok || bad "of 300 samples 15 calibrate: $(cat log)"
"$tool" score class.st --data $in --labels in-labels --class 1 > one.txt
"$tool" score class.st --data $in | sed -n 'n;p' | cmp -s - one.txt && ok || bad "these are not the samples of class 1"
"$tool" score class.st --data $in --labels in-labels --not-class 0 | cmp -s - one.txt && ok || bad "not class 0 is class 1 here"
works "one-class" "$tool" eval class.st --in $in --labels in-labels --class 1 --json
[ "$(grep -c '"protocol": "one-class", "classes": "class 1", "n_in": 60, "n_ood": 60' log)" = 2 ] && ok || bad "one-class: $(cat log)"
works "one-class and another set" "$tool" eval class.st --in $in --labels in-labels --not-class 1 --ood $ood
grep -q "^one-class protocol" log && [ "$(grep -c "$in, class 1$" log)" = 2 ] && ok || bad "one-class: $(cat log)"
works "calibrate on a class" "$tool" calibrate class.st --data $in --labels in-labels --class 0
works "detect in a class" "$tool" detect class.st --data $in --labels in-labels --class 1 --alpha 0.1
grep -q "of 60 samples of $in, class 1 are" log && ok || bad "detect: $(cat log)"
refuses 1 "class 9 does not occur among 120 labels" "$tool" score class.st --data $in --labels in-labels --class 1,9
refuses 1 "in-labels: 120 labels of 1 numbers; $train has 600 samples" "$tool" train --data $train --labels in-labels --class 1 --out o
refuses 2 "give one of them" "$tool" score class.st --data $in --labels in-labels --class 1 --not-class 0
refuses 2 "they need --labels" "$tool" score class.st --data $in --class 1
refuses 2 "needs --class" "$tool" score class.st --data $in --labels in-labels
refuses 2 "as in 3,5" "$tool" score class.st --data $in --labels in-labels --class 1,
refuses 2 "eval needs --ood" "$tool" eval whole.st --in $in
works "sample" "$tool" sample --model whole.st --n 5 --temperature 0.7 --out s.png
[ "$(head -c 4 s.png | tail -c 3)" = PNG ] && ok || bad "no PNG"
works "sample npy" "$tool" sample --model whole.st --n 5 --out s.npy
works check "$tool" check --model whole.st --data $in --threads 1
grep -q "^round trip .*; 64 samples$" log && grep -q "^gradient .*; [1-9][0-9]* of [1-9][0-9]* parameters$" log &&
    ok || bad "what was sampled: $(cat log)"
works "check without data" "$tool" check --model whole.st --threads 1
works "check without time" "$tool" check --model whole.st --threads 1 --seconds 0.000001
grep -q "^jacobian  *- .*no time, take more --seconds$" log && grep -q "^ok after" log && ok || bad "no time: $(cat log)"
works "info, no option" "$tool" info whole.st
works export "$tool" export whole.st --out weights.st
works "export without a detector" "$tool" export w0.st --out bare.st # which has samples of its own
works "export of 16 bits" "$tool" export w0.st --f16 --out half-bare.st
is_smaller() { [ $(($(wc -c < $1) * $2)) -lt "$(wc -c < $3)" ] && ok || bad "$1 is not a ${2}th of $3"; }
is_smaller bare.st 2 w0.st; is_smaller half-bare.st 4 w0.st
works "exported scores" "$tool" score --model weights.st --data $in --out c.npy
cmp -s a.npy c.npy && ok || bad "an exported model scores differently"
refuses 2 "is also --model" "$tool" export weights.st --out weights.st
works version "$tool" --version
works info "$tool" info --model whole.st
grep -q '^# held-out bpd [0-9]' log && ok || bad "no held-out bpd: $(tail -n 1 log)"
grep -v '^#' log > spec.txt
works "spec" "$tool" train --data $train --spec spec.txt --steps 1 --out spec.st
works presets "$tool" presets
for command in "" train eval score encode calibrate detect sample export check info presets; do
    for word in --help -h; do
        works "$command $word" "$tool" $command $word
        [ "$(awk 'length($0) > 79' log | wc -l)" = 0 ] && ok || bad "$command $word: too wide"
    done
done
works "evaluation while training" "$tool" train --data $train --spec small --threads 1 --steps 30 --batch 100 --eval-in $in --eval-ood $ood --log e.csv --out e.st
[ "$(grep -c auroc log)" -ge 1 ] && ok || bad "a line of metrics expected"
head -n 1 e.csv | grep -qx step,epoch,seconds,bpd,grad_norm,lr,held_out_bpd,auroc && ok || bad "log: $(head -n 1 e.csv)"
tail -n 1 e.csv | grep -qE '^30,([^,]+,){5}[^,]*,0\.[0-9]+$' && ok || bad "log: $(tail -n 1 e.csv)"
works "the log goes on" "$tool" train --data $train --resume e.st --steps 32 --log e.csv --out e.st
[ "$(grep -c step e.csv)" = 1 ] && [ "$(tail -n 1 e.csv | cut -d , -f 1)" = 32 ] && ok || bad "log after resuming: $(tail -n 2 e.csv)"
works "cosine with evaluation" "$tool" train --data $train --spec small --steps 4 --schedule cosine --eval-in $in --eval-ood $ood --out e.st
works "more than 10000 samples" "$tool" sample --model spec.st --n 10001 --threads 1 --out many.npy
grep -aq "'shape': (10001, 1, 28, 28)" many.npy && ok || bad "10001 samples expected"
rm -f many.npy

# held-out samples: chosen by chance, never trained on, measured, the best state kept
works "held-out samples" "$tool" train --data $train --spec small --steps 20 --holdout 60 --seed 1 --log h.csv --out held.st
works "held-out samples by default" "$tool" train --data $train --spec small --steps 20 --seed 1 --out default.st
"$tool" info held.st | grep -q "^# 540 samples to train on, 30 to choose" && ok || bad "held-out samples: $("$tool" info held.st)"
cmp -s held.st default.st && ok || bad "a tenth is not the default"
tail -n 1 h.csv | grep -qE '^20,([^,]+,){5}[0-9.]+,$' && ok || bad "held-out log: $(tail -n 1 h.csv)"
works "patience" "$tool" train --data $train --spec small --steps 2000 --limit 40 --lr 0.05 --patience 2 --log p.csv --out p.st
[ "$(sed 1d p.csv | cut -d , -f 1 | sort -n | tail -n 1)" -lt 2000 ] && grep -q "kept is the best" log && ok || bad "patience: $(cat log)"
best=$(cut -d , -f 7 p.csv | grep '[0-9]' | sort -n | head -n 1)
"$tool" info p.st | awk -v best="$best" '/^# held-out bpd/ { d = $4 - best; exit !(d * d < 1e-6) }' && ok || bad "not the best: $best"

# a good model is replaced only by a trained one, and stays whole
cp whole.st good.st
same() { cmp -s whole.st good.st && ok || { bad "$1 changed a good model"; cp whole.st good.st; }; }
"$tool" score --model whole.st --data $in --limit 30 --score latent --score likelihood --out v.npy
refuses 2 "nothing of the 600 samples" "$tool" train --data $train --holdout 600 --out good.st; same "a wrong holdout"
refuses 2 "from 1e-12 to 10" "$tool" train --data $train --lr 1e9 --out good.st; same "a wrong rate"
refuses 1 "v.npy" "$tool" train --data $train --eval-in $in --eval-ood v.npy --out good.st; same "a wrong shape"
refuses 1 "v.npy" "$tool" train --data $train --negative v.npy --out good.st; same "a wrong shape"
refuses 1 "v.npy" "$tool" train --data v.npy --resume good.st --out good.st; same "a wrong shape"
"$tool" train --data $train --spec small --seconds 60 --save-every 0 --out good.st > log 2> err & pid=$!
sleep 1; kill -9 $pid; wait $pid 2> err; same "a killed run"
for signal in INT TERM; do
    "$tool" train --data $train --spec small --seconds 60 --out $signal.st > log 2> err & pid=$!
    sleep 1; kill -$signal $pid; wait $pid; status=$?
    [ $status = 0 ] && grep -q "stopped after [1-9]" log && "$tool" info $signal.st > log && ok ||
        bad "$signal: status $status, $(cat log err)"
done
[ -z "$(ls | grep part)" ] && ok || bad "left behind: $(ls | grep part)"

# an output is never an input, however it is spelled
ln whole.st hard.st
ln -s $in soft
for out in whole.st ./whole.st "$dir/whole.st" hard.st; do
    refuses 2 "is also --model" "$tool" score --model whole.st --data $in --out $out
    refuses 2 "is also --model" "$tool" sample --model whole.st --n 1 --out $out
done
refuses 2 "is also --data" "$tool" train --data $train --steps 1 --out ./$train
refuses 2 "is also --data" "$tool" encode --model whole.st --data $in --out soft
refuses 2 "is also --spec" "$tool" train --data $train --spec spec.txt --out spec.txt
refuses 2 "is also --eval-ood" "$tool" train --data $train --eval-in $in --eval-ood $ood --out $ood
refuses 2 "is also --log" "$tool" train --data $train --out whole.st --log hard.st
cmp -s whole.st good.st && ok || bad "a refused output was written"

# usage
refuses 2 "contradicts" "$tool" train --data $train --holdout 0 --patience 3 --out o
refuses 2 "command is needed" "$tool"
refuses 2 "did you mean train?" "$tool" frain
refuses 2 "unknown command" "$tool" bake
refuses 2 "did you mean --data?" "$tool" train --dada x
refuses 2 "unknown option" "$tool" train --colour x
refuses 2 "not an option of" "$tool" info --steps 4
refuses 2 "takes options only" "$tool" train $train
refuses 2 "given twice" "$tool" info --model whole.st good.st
refuses 2 "needs a value" "$tool" train --data
refuses 2 "whole number" "$tool" train --data $train --steps x --out o
refuses 2 "whole number" "$tool" train --data $train --steps 1.5 --out o
refuses 2 "from 1e-12" "$tool" train --data $train --lr -1 --out o
refuses 2 "constant|cosine" "$tool" train --data $train --schedule linear --out o
refuses 2 "needs --data" "$tool" train --out o
refuses 2 "needs --model" "$tool" eval --in $in --ood $ood
refuses 2 "one of them" "$tool" train --data $train --preset mlp-cycle --spec spec.txt --out o
refuses 2 "contradicts" "$tool" train --data $train --resume half.st --seed 4 --out o
refuses 2 "both or none" "$tool" train --data $train --eval-in $in --out o
refuses 2 "flowood presets" "$tool" train --data $train --preset nope --out o
refuses 2 "whole number" "$tool" train --data $train --preset mlp-cycle:2x --out o
refuses 2 "no bottleneck" "$tool" train --data $train --preset realnvp-tiny:4 --out o
refuses 2 "did you mean mlp-cycle?" "$tool" train --data $train --preset mlp-cycel --out o
refuses 2 "did you mean likelihood?" "$tool" eval --model whole.st --in $in --ood $ood --score liklihood
refuses 2 "unknown score nope: known are likelihood, latent," "$tool" score --model whole.st --data $in --score nope
refuses 2 "--steps 0" "$tool" train --data $train --steps 0 --out o
refuses 2 "--limit 0" "$tool" score whole.st --data $in --limit 0
refuses 1 "names a file" "$tool" train --data $train --spec "input 1x28x28" --out o
for out in o.csv o.json o.png o.npy o.PT; do
    refuses 2 "end in .safetensors" "$tool" train --data $train --steps 1 --out $out
done
refuses 2 "end in .npy or .csv" "$tool" score --model whole.st --data $in --out o.json
refuses 2 "end in .npy" "$tool" encode --model whole.st --data $in --out o.csv
refuses 2 "end in .png or .npy" "$tool" sample --model whole.st --n 1 --out o.safetensors

# bad files
refuses 1 "missing-file" "$tool" train --data missing-file --out o
refuses 1 "missing-file" "$tool" info --model missing-file
refuses 1 "nowhere" "$tool" train --data $train --steps 1 --out nowhere/model
refuses 1 "folder" "$tool" train --data $train --steps 1 --out .
refuses 1 "folder" "$tool" info .
if mkfifo pipe 2>/dev/null; then
    refuses 1 "pipe" "$tool" train --data $train --spec pipe --out o
    refuses 1 "pipe" "$tool" train --data $train --steps 1 --out pipe
else
    skipped=$((skipped + 1))
fi
head -c 5000 $train > short-idx
refuses 1 "short-idx" "$tool" train --data short-idx --out o
: > empty-idx
refuses 1 "empty-idx" "$tool" train --data empty-idx --out o
refuses 1 "empty-idx" "$tool" train --data $train --spec empty-idx --out o
refuses 1 "no text" "$tool" train --data $train --spec $train --out o
printf 'hello, this is no data file at all' > text-file
refuses 1 "text-file" "$tool" train --data text-file --out o
printf '\000\000\010\003\000\000\000\000\000\000\000\034\000\000\000\034' > zero-idx
refuses 1 "zero-idx" "$tool" train --data zero-idx --out o
refuses 1 "v.npy: its samples are 2x1x1, those of whole.st are 1x28x28" "$tool" score --model whole.st --data v.npy
gzip -c $train | head -c 20000 > short.gz
refuses 1 "short.gz" "$tool" train --data short.gz --out o
{ printf '\000\000\010\003\000\000\000\001\000\000\000\034\000\000\000\034'; head -c 30000000 /dev/zero; } | gzip -c > endless.gz
refuses 1 "endless.gz" "$tool" train --data endless.gz --out o
refuses 1 "preset tabular" "$tool" train --data v.npy --preset mlp-cycle --out o
works "vectors" "$tool" train --data v.npy --steps 2 --out o
printf 'input 1x28x28\ndequantize\nlogit alpha=2\n' > bad-spec
refuses 1 "alpha=2" "$tool" train --data $train --spec bad-spec --out o
printf 'input 1x28x28\nlogit\ncoupling mask=cycle:0 net=mlp hidden=4\n' > bad-spec
refuses 1 "add dequantize" "$tool" train --data $train --spec bad-spec --out o
printf 'input 1x28x28\ncoupling mask=cycle:0 net=mlp hiden=4\n' > bad-spec
refuses 1 "line 2" "$tool" train --data $train --spec bad-spec --out o
printf 'input 1x20x20\ncoupling mask=cycle:0 net=mlp hidden=4\n' > bad-spec
refuses 1 "bad-spec are 1x20x20" "$tool" train --data $train --spec bad-spec --steps 1 --out o

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
    head -c 100000 /dev/zero > full/fill 2> /dev/null
    rm -f kept.st
    refuses 1 "--log full/l.csv: could not" "$tool" train --data $train --spec tiny --steps 1 --batch 8 --holdout 0 --log full/l.csv --out kept.st
    works "the model of a run whose log was lost" "$tool" info kept.st
    umount full
else
    skipped=$((skipped + 1))
fi
for what in presets --help "train --help" --version; do
    "$tool" $what > /dev/full 2> err && bad "a full standard output goes unnoticed: $what" || ok
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed = 0 ]
