// Bytes that torch's libraries hold from the C allocator.
#pragma once

#include <cstdint>

namespace fedsparse {

// Starts counting at the first call; false where that is not possible (other than Linux with glibc).
bool memory_counted();
// Bytes held now and at most, relative to the moment counting started.
std::int64_t memory_level();
std::int64_t memory_peak();
// Restarts the record at `peak`, or at the level where that is higher.
void memory_set_peak(std::int64_t peak);

}  // namespace fedsparse
