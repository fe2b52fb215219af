# out/study/results.jsonl -> table.md, figure7.svg, steps.svg (see study.sh); with json.awk. Every
# number is a mean over seeds with its 95 % confidence interval (Student's t).

function set_name(path,    n, part) {
    n = split(path, part, "/")
    if (part[n] ~ /^strokes/) return "strokes"
    if (part[n] ~ /^silhouettes/) return "silhouettes"
    if (part[n - 1] == "features") { sub(/-test.*/, "", part[n]); return part[n] }
    return part[n - 1]
}

# The half width of the 95 % interval of a mean of n values.
function half(n, sum, squares,    variance) {
    if (n < 2) return 0
    variance = (squares - sum * sum / n) / (n - 1)
    return t[n < 11 ? n : 11] * sqrt((variance > 0 ? variance : 0) / n)
}

function mean(key) { return count[key] ? sum[key] / count[key] : 0 }
function width(key) { return half(count[key], sum[key], squares[key]) }

function add(key, x) { count[key]++; sum[key] += x; squares[key] += x * x }

function cell(key, digits) {
    if (!count[key]) return "-"
    if (count[key] == 1) return sprintf("%." digits "f", mean(key))
    return sprintf("%." digits "f ± %." digits "f", mean(key), width(key))
}

BEGIN {
    split("0 12.71 4.30 3.18 2.78 2.57 2.45 2.36 2.31 2.26 2.0", t, " ")
}

{
    run = value($0, "run"); steps = value($0, "steps"); ood = set_name(value($0, "ood"))
    score = value($0, "score")
    key = run SUBSEP steps
    if (!(key in known)) { known[key] = 1; order[++runs] = key }
    if (steps + 0 > last[run] + 0) last[run] = steps
    add(key SUBSEP score SUBSEP ood, value($0, "auroc"))
    if (score == "likelihood" && ood == "mnist") add(key SUBSEP "bpd", value($0, "bpd_in"))
}

# Does the AUROC on MNIST of run a lie below that of run b, with intervals that do not touch?
function claim(text, a, b,    ka, kb, verdict) {
    ka = a SUBSEP last[a] SUBSEP "likelihood" SUBSEP "mnist"
    kb = b SUBSEP last[b] SUBSEP "likelihood" SUBSEP "mnist"
    if (!count[ka] || !count[kb]) return
    if (count[ka] < 2 || count[kb] < 2) verdict = "one seed shows nothing"
    else if (mean(ka) + width(ka) < mean(kb) - width(kb)) verdict = "yes"
    else if (mean(ka) - width(ka) > mean(kb) + width(kb)) verdict = "**no, the other way round**"
    else verdict = "not decided by these seeds"
    printf "| %s | %s | %s | %s |\n", text, cell(ka, 3), cell(kb, 3), verdict > table
}

function x_of(v, low, high) { return 80 + 580 * (log(v) - log(low)) / (log(high) - log(low)) }
function y_of(a) { return 345 - 285 * a }

function open_svg(file, title, label,    i) {
    printf "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 720 400' role='img' " \
           "font-family='sans-serif' font-size='13'>\n<title>%s</title>\n" \
           "<rect width='720' height='400' fill='#fff'/>\n" \
           "<text x='80' y='24' font-size='15'>%s</text>\n", title, title > file
    for (i = 0; i <= 10; i += 2)
        printf "<path d='M80 %d H660' stroke='%s'/><text x='72' y='%d' text-anchor='end'>%.1f" \
               "</text>\n", y_of(i / 10), "#ddd", y_of(i / 10) + 4, i / 10 > file
    printf "<path d='M80 %d H660' stroke='#999' stroke-dasharray='2 4'/>\n" \
           "<text x='656' y='%d' text-anchor='end' fill='#666'>chance</text>\n" \
           "<text x='370' y='388' text-anchor='middle'>%s</text>\n" \
           "<text transform='translate(26 190) rotate(-90)' text-anchor='middle'>" \
           "AUROC of the likelihood, MNIST</text>\n", y_of(0.5), y_of(0.5) - 4, label > file
}

function tick(file, v, low, high) {
    printf "<text x='%.1f' y='364' text-anchor='middle'>%s</text>\n", x_of(v, low, high), v > file
}

# A point with its interval; the line to the one before it.
function point(file, x, key, colour, first,    y, h) {
    y = y_of(mean(key)); h = 285 * width(key)
    printf "<circle cx='%.1f' cy='%.1f' r='4' fill='%s'/><path d='M%.1f %.1f V%.1f' stroke='%s' " \
           "stroke-width='1.5'/>\n", x, y, colour, x, y - h, y + h, colour > file
    if (!first)
        printf "<path d='M%.1f %.1f L%.1f %.1f' stroke='%s' stroke-width='2'/>\n", last_x, last_y,
               x, y, colour > file
    last_x = x; last_y = y
}

function name_line(file, text, colour, row) {
    printf "<rect x='%d' y='34' width='12' height='12' fill='%s'/><text x='%d' y='45'>%s</text>\n",
           80 + 150 * row, colour, 98 + 150 * row, text > file
}

function bottlenecks(file, run, colour,    i, n, l, key, first) {
    n = split("1 2 5 10 30 100", l, " ")
    first = 1
    for (i = 1; i <= n; i++) {
        key = run l[i] SUBSEP last[run l[i]] SUBSEP "likelihood" SUBSEP "mnist"
        if (!count[key]) continue
        point(file, x_of(l[i], 1, 100), key, colour, first)
        first = 0
    }
}

function baseline(file, run, text, colour,    key) {
    key = run SUBSEP last[run] SUBSEP "likelihood" SUBSEP "mnist"
    if (!count[key]) return
    printf "<path d='M80 %.1f H660' stroke='%s' stroke-dasharray='6 4'/><text x='84' y='%.1f' " \
           "fill='%s'>%s</text>\n", y_of(mean(key)), colour, y_of(mean(key)) - 5, colour,
           text > file
}

function against_steps(file, run, colour,    i, key, part, first) {
    first = 1
    for (i = 1; i <= runs; i++) { # a run's lines lie in the order of their steps: see END
        split(order[i], part, SUBSEP)
        if (part[1] != run) continue
        key = order[i] SUBSEP "likelihood" SUBSEP "mnist"
        point(file, x_of(part[2], low, high), key, colour, first)
        first = 0
    }
}

# What rows are in the order of: the run, the number at its end, the steps.
function place(key,    part, number) {
    split(key, part, SUBSEP)
    number = part[1]
    sub(/.*[^0-9]/, "", number)
    return sprintf("%s %6d %9d", substr(part[1], 1, length(part[1]) - length(number)), number,
                   part[2])
}

END {
    for (i = 2; i <= runs; i++)
        for (j = i; j > 1 && place(order[j - 1]) > place(order[j]); j--) {
            swap = order[j]; order[j] = order[j - 1]; order[j - 1] = swap
        }
    table = out "/table.md"
    print "AUROC, OOD is positive, first 2,000 of each test set: mean over seeds ± the 95 %" > table
    print "interval of the mean (Student's t)." > table
    print "" > table
    print "| model | seeds | steps | bpd | likelihood: MNIST | notMNIST | strokes | silhouettes |" \
          " latent: MNIST | detector: MNIST | notMNIST |" > table
    print "|---|---|---|---|---|---|---|---|---|---|---|" > table
    for (i = 1; i <= runs; i++) {
        split(order[i], part, SUBSEP)
        k = order[i] SUBSEP "likelihood" SUBSEP
        d = order[i] SUBSEP "detector" SUBSEP
        printf "| %s | %d | %d | %s | %s | %s | %s | %s | %s | %s | %s |\n", part[1],
               count[k "mnist"], part[2], cell(order[i] SUBSEP "bpd", 2), cell(k "mnist", 3),
               cell(k "notmnist", 3), cell(k "strokes", 3), cell(k "silhouettes", 3),
               cell(order[i] SUBSEP "latent" SUBSEP "mnist", 3), cell(d "mnist", 3),
               cell(d "notmnist", 3) > table
    }
    print "\nWhat the paper says of the AUROC against MNIST, each after the steps of the table:\n" > table
    print "| claim | left | right | shown? |\n|---|---|---|---|" > table
    claim("conv RealNVP < MLP, checkerboard", "realnvp-tiny", "mlp-checker")
    claim("checkerboard < horizontal (MLP)", "mlp-checker", "mlp-horizontal")
    claim("horizontal < cycle (MLP)", "mlp-horizontal", "mlp-bottleneck-10")
    claim("checkerboard < horizontal (ResNet)", "checker8", "horizontal8")
    claim("horizontal < cycle (ResNet)", "horizontal8", "cycle-resnet")
    claim("cycle < cycle with a bottleneck (ResNet)", "cycle-resnet", "resnet-bottleneck-10")
    claim("bottleneck 10 < bottleneck 2 (MLP)", "mlp-bottleneck-10", "mlp-bottleneck-2")
    claim("bottleneck 100 < bottleneck 2 (MLP)", "mlp-bottleneck-100", "mlp-bottleneck-2")
    claim("bottleneck 100 < bottleneck 2 (ResNet)", "resnet-bottleneck-100", "resnet-bottleneck-2")
    claim("pixels < deep features", "mlp-bottleneck-10", "features")

    file = out "/figure7.svg"
    open_svg(file, "The narrower the bottleneck, the better the detection?",
             "bottleneck of the st-network")
    split("1 2 5 10 30 100", l, " ")
    for (i = 1; i <= 6; i++) tick(file, l[i], 1, 100)
    name_line(file, "MLP, cycle mask", "#1f6fb4", 0)
    name_line(file, "ResNet, cycle mask", "#c4501b", 1)
    baseline(file, "realnvp-tiny", "RealNVP", "#777")
    baseline(file, "mlp-checker", "MLP, checkerboard", "#777")
    bottlenecks(file, "mlp-bottleneck-", "#1f6fb4")
    bottlenecks(file, "resnet-bottleneck-", "#c4501b")
    print "</svg>" > file

    file = out "/steps.svg"
    for (i = 1; i <= runs; i++) {
        split(order[i], part, SUBSEP)
        if (part[1] !~ /^(realnvp-tiny|mlp-checker|mlp-cycle)$/) continue
        if (!low || part[2] + 0 < low) low = part[2] + 0
        if (part[2] + 0 > high) high = part[2] + 0
    }
    open_svg(file, "Does it help to train longer?", "steps of training")
    if (high > low) {
        for (v = 10; v <= high; v *= 10) if (v >= low) tick(file, v, low, high)
        name_line(file, "mlp-cycle", "#1f6fb4", 0)
        name_line(file, "mlp-checker", "#3a8a3a", 1)
        name_line(file, "realnvp-tiny", "#c4501b", 2)
        against_steps(file, "mlp-cycle", "#1f6fb4")
        against_steps(file, "mlp-checker", "#3a8a3a")
        against_steps(file, "realnvp-tiny", "#c4501b")
    }
    print "</svg>" > file
}
