// SPDX-License-Identifier: Apache-2.0
// Fewer page faults for large buffers that are written once.
#pragma once

#include <cstdint>

namespace seqrec {

/// Asks the system to back `bytes` at `memory`, not yet touched, by huge pages where it can.
///
/// Large results come from the system anew at every call, and each of their pages costs a fault at
/// its first touch: with pages of 4 KiB, a tenth of the time of a recurrent layer. Does nothing for
/// small buffers and on systems without such pages.
void advise_huge_pages(void* memory, std::int64_t bytes);

}  // namespace seqrec
