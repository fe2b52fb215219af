# Lines of bench/growth -> an SVG: time against images, time and memory against couplings, both axes
# logarithmic.
$1 == "bench" && $2 ~ /^growth-/ {
    split($2, part, "-")
    key = part[2] " " $3
    n[key]++
    x[key, n[key]] = part[3]
    y[key, n[key]] = $4
}

function px(v) { return left + 200 * log(v / low_x) / log(high_x / low_x) }
function py(v) { return 260 - 190 * log(v / low_y) / log(high_y / low_y) }

function range(key,    i) {
    for (i = 1; i <= n[key]; i++) {
        if (x[key, i] + 0 < low_x || !low_x) low_x = x[key, i] + 0
        if (x[key, i] + 0 > high_x) high_x = x[key, i] + 0
        if (y[key, i] + 0 < low_y || !low_y) low_y = y[key, i] + 0
        if (y[key, i] + 0 > high_y) high_y = y[key, i] + 0
    }
}

function curve(key, colour, name, row,    i) {
    printf "<polyline fill='none' stroke='%s' stroke-width='2' points='", colour
    for (i = 1; i <= n[key]; i++) printf "%.1f,%.1f ", px(x[key, i]), py(y[key, i])
    print "'/>"
    for (i = 1; i <= n[key]; i++)
        printf "<circle cx='%.1f' cy='%.1f' r='3' fill='%s'/>\n", px(x[key, i]), py(y[key, i]),
               colour
    printf "<text x='%d' y='%d' fill='%s'>%s</text>\n", left + 8, 66 + 16 * row, colour, name
}

# One panel: a key, or two of them with their names.
function panel(at, title, axis, unit, a, name_a, b, name_b,    v) {
    left = at; low_x = high_x = low_y = high_y = 0
    range(a)
    if (b != "") range(b)
    if (!(high_x > low_x)) return
    v = 1; while (v * 10 <= low_y) v *= 10
    while (v > low_y) v /= 10
    low_y = v
    while (v < high_y) v *= 10
    high_y = v
    printf "<text x='%d' y='34' font-size='15'>%s</text>\n", left, title
    for (v = low_y; v <= high_y * 1.001; v *= 10)
        printf "<path d='M%d %.1f h200' stroke='#ddd'/><text x='%d' y='%.1f' text-anchor='end'>%g" \
               "</text>\n", left, py(v), left - 6, py(v) + 4, v
    for (v = 1; v <= n[a]; v++)
        if (v % 2 || n[a] < 5)
            printf "<text x='%.1f' y='278' text-anchor='middle'>%s</text>\n", px(x[a, v]), x[a, v]
    printf "<text x='%d' y='298' text-anchor='middle'>%s</text>\n", left + 100, axis
    printf "<text x='%d' y='50' fill='#666'>%s</text>\n", left, unit
    curve(a, "#1f6fb4", name_a, 0)
    if (b != "") curve(b, "#c4501b", name_b, 1)
}

BEGIN {
    print "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 860 310' role='img' " \
          "font-family='sans-serif' font-size='12'>"
    print "<title>Time and memory as they grow</title><rect width='860' height='310' fill='#fff'/>"
}

END {
    panel(60, "Scoring, mlp-cycle", "images", "ms", "images score", "")
    panel(340, "A training step, ResNets", "couplings", "ms", "couplings step", "all kept",
          "budget step", "budget of 60 MB")
    panel(620, "Its memory", "couplings", "MB", "couplings memory", "all kept", "budget memory",
          "budget of 60 MB")
    print "</svg>"
}
