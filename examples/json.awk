# What run.awk and study.awk read lines of JSON with.

# The number or word behind "name": in text.
function value(text, name,    at) {
    at = index(text, "\"" name "\": ")
    if (at == 0) return ""
    text = substr(text, at + length(name) + 4)
    sub(/[,}].*/, "", text)
    gsub(/"/, "", text)
    return text
}
