#include "strips.h"

#include <cstddef>
#include <cstring>

namespace fedsparse {
namespace {

// Strips pay as long as the weights that they hold, zeros for missing targets included, are at most this many times
// those that are kept.
constexpr double kMostPadding = 1.5;

// The kept positions of each target.
struct Lists {
  std::int64_t targets;
  const std::int32_t* start;  // (targets + 1)
  const Index& position;

  std::int64_t size(std::int64_t target) const { return start[target + 1] - start[target]; }
  bool same(std::int64_t a, std::int64_t b) const {
    const std::int64_t bytes = position.wide ? sizeof(std::int32_t) : sizeof(std::uint16_t);
    const char* data = static_cast<const char*>(position.data);
    const auto length = static_cast<std::size_t>(size(a) * bytes);
    return size(a) == size(b) && std::memcmp(data + start[a] * bytes, data + start[b] * bytes, length) == 0;
  }
};

Strips single(const Lists& lists) {
  Strips strips;
  strips.count = lists.targets;
  strips.entries = lists.start[lists.targets];
  return strips;
}

// Targets in order, each behind the last one like it if that one's strip has room. Ranges of `range` share no strip.
// Gives up, with what it has, where strips have more than `most` entries: in a mask without strips that is soon.
Strips cut(const Lists& lists, std::int64_t range, std::int64_t width, std::int64_t most) {
  Strips strips;
  strips.width = width;
  struct Last {
    std::int64_t target = -1, held = 0;
    std::size_t place = 0;  // in members, for the next one
  };
  Last lasts[2];  // without and with kept positions
  for (std::int64_t t = 0; t < lists.targets && strips.entries <= most; ++t) {
    if (t % range == 0) lasts[0] = lasts[1] = Last{};
    Last& last = lasts[lists.size(t) > 0];
    if (last.target < 0 || last.held == width || !lists.same(last.target, t)) {
      last = {t, 0, strips.members.size()};
      strips.members.resize(last.place + static_cast<std::size_t>(width), -1);
      strips.entries += lists.size(t);
      ++strips.count;
    }
    strips.members[last.place++] = static_cast<std::int32_t>(t);
    last.target = t;
    ++last.held;
  }
  return strips;
}

Strips worthwhile(const Lists& lists, std::int64_t range, std::int64_t width) {
  if (width == 1) return single(lists);
  const auto most = static_cast<std::int64_t>(kMostPadding * lists.start[lists.targets] / static_cast<double>(width));
  const Strips strips = cut(lists, range, width, most);
  return strips.entries > 0 && strips.entries <= most ? strips : single(lists);
}

Lists by_row(const PatternView& p) { return {p.rows, p.row_start, p.column}; }
Lists by_input(const PatternView& p) { return {p.inputs, p.column_start, p.entry}; }

}  // namespace

Strips row_strips(const PatternView& pattern, std::int64_t groups, std::int64_t width) {
  return worthwhile(by_row(pattern), pattern.rows / groups, width);
}

Strips input_strips(const PatternView& pattern, std::int64_t width) {
  return worthwhile(by_input(pattern), pattern.inputs, width);
}

}  // namespace fedsparse
