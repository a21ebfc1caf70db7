-- For wrk: sends the photos whose paths stand after `--` over and over; prints one line of JSON at the end.
local photos, turn = {}, 0

function init(paths)
  for i, path in ipairs(paths) do
    local file = assert(io.open(path, "rb"))
    photos[i] = wrk.format("POST", nil, {["content-type"] = "image/jpeg"}, file:read("*a"))
    file:close()
  end
end

function request()
  turn = turn % #photos + 1
  return photos[turn]
end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"seconds": %.6f, "answers": %d, "refused": %d, "broken": %d, ' ..
    '"p50_ms": %.3f, "p95_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}',
    summary.duration / 1e6, summary.requests, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
