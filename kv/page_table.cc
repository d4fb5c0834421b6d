#include "kv/page_table.h"

#include <algorithm>
#include <new>
#include <utility>

namespace sightline {
namespace internal {

size_t CopyKeptBits(const uint32_t* kept, size_t num_tokens, uint32_t* bits) {
  size_t gone = 0;
  for (size_t w = 0; w < kTileWords; ++w) {
    const size_t begin = w * 32;
    const size_t there = num_tokens <= begin ? 0 : std::min<size_t>(num_tokens - begin, 32);
    const uint32_t to_come = there == 32 ? 0 : ~uint32_t{0} << there;
    bits[w] = kept[w] | to_come;
    gone += static_cast<size_t>(__builtin_popcount(~bits[w]));
  }
  return gone;
}

Ref<PageTable> PageTable::Create(size_t page_tokens, size_t room) {
  Ref<PageTable> table(new (std::nothrow) PageTable());
  if (!table) return {};
  table->page_tokens_ = page_tokens;
  table->room_ = room;
  table->pages_.reset(new (std::nothrow) Ref<Block>[room]);
  table->data_.reset(new (std::nothrow) const unsigned char*[room]());
  if (table->pages_ == nullptr || table->data_ == nullptr) return {};
  return table;
}

Ref<PageTable> PageTable::Clone(size_t room) const {
  Ref<PageTable> clone = Create(page_tokens_, std::max(room, num_pages_));
  if (!clone) return {};
  if (tiles_ != nullptr) {
    if (!clone->MakeBits()) return {};
    const size_t num_tiles = num_pages_ * TilesOfPage();
    std::copy_n(tiles_.get(), num_tiles, clone->tiles_.get());
    std::copy_n(kept_.get(), num_tiles * kTileWords, clone->kept_.get());
  }
  for (size_t i = 0; i < num_pages_; ++i) {
    clone->pages_[i] = pages_[i];
    clone->data_[i] = data_[i];
  }
  clone->num_pages_ = num_pages_;
  clone->num_held_ = num_held_;
  clone->first_ = first_;
  clone->num_evicted_ = num_evicted_;
  return clone;
}

void PageTable::Push(Ref<Block> page) {
  data_[num_pages_] = page->data();
  pages_[num_pages_] = std::move(page);
  ++num_pages_;
  ++num_held_;
}

void PageTable::Replace(size_t i, Ref<Block> page) {
  const bool was_gone = !pages_[i];
  data_[i] = page->data();
  pages_[i] = std::move(page);
  first_ = std::min(first_, i);
  if (!was_gone) return;
  ++num_held_;
  for (size_t tile = i * TilesOfPage(); tile < (i + 1) * TilesOfPage(); ++tile) SetTile(tile);
}

bool PageTable::MakeBits() {
  if (tiles_ != nullptr) return true;
  const size_t num_tiles = room_ * TilesOfPage();
  tiles_.reset(new (std::nothrow) TileKeys[num_tiles]);
  kept_.reset(new (std::nothrow) uint32_t[num_tiles * kTileWords]);
  if (tiles_ == nullptr || kept_ == nullptr) {
    tiles_.reset();
    kept_.reset();
    return false;
  }
  std::fill_n(tiles_.get(), num_tiles, TileKeys::kAll);
  std::fill_n(kept_.get(), num_tiles * kTileWords, ~uint32_t{0});
  return true;
}

void PageTable::Truncate(size_t num_tokens) {
  const size_t left = (num_tokens + page_tokens_ - 1) / page_tokens_;
  while (num_pages_ > left) {
    --num_pages_;
    Drop(num_pages_);
  }
  first_ = std::min(first_, num_pages_);
  if (tiles_ == nullptr) return;
  // Tokens to come are there: their bits are set again.
  const size_t end = room_ * page_tokens_;
  for (size_t token = num_tokens; token < end; ++token) {
    const size_t tile = token / kKvTile;
    if (token % kKvTile == 0 && tiles_[tile] == TileKeys::kAll) {
      token += kKvTile - 1;
      continue;
    }
    if (IsKept(token)) continue;
    BitsOf(tile)[token % kKvTile / 32] |= uint32_t{1} << token % 32;
    --num_evicted_;
  }
  for (size_t tile = num_tokens / kKvTile; tile < room_ * TilesOfPage(); ++tile) {
    // A page that is gone stays so until a token comes.
    const size_t page = tile / TilesOfPage();
    if (page >= num_pages_ || pages_[page]) SetTile(tile);
  }
}

bool PageTable::IsKept(size_t token) const {
  const uint32_t word = BitsOf(token / kKvTile)[token % kKvTile / 32];
  return (word >> token % 32 & 1) != 0;
}

// By its bits.
void PageTable::SetTile(size_t tile) {
  const uint32_t* bits = BitsOf(tile);
  const auto all_are = [&](uint32_t wanted) {
    return std::all_of(bits, bits + kTileWords, [=](uint32_t word) { return word == wanted; });
  };
  tiles_[tile] = all_are(0)              ? TileKeys::kNone
                 : all_are(~uint32_t{0}) ? TileKeys::kAll
                                         : TileKeys::kSome;
}

void PageTable::DropPageIfEmpty(size_t i) {
  const TileKeys* tiles = tiles_.get() + i * TilesOfPage();
  const auto is_gone = [](TileKeys keys) { return keys == TileKeys::kNone; };
  if (!std::all_of(tiles, tiles + TilesOfPage(), is_gone)) return;
  Drop(i);
  SeekFirst();
}

// Page i is there no more.
Ref<Block> PageTable::Drop(size_t i) {
  if (pages_[i]) --num_held_;
  data_[i] = nullptr;
  return std::exchange(pages_[i], {});
}

bool PageTable::Keep(const uint32_t* kept, size_t num_tokens) {
  if (!MakeBits()) return false;
  for (size_t tile = 0; tile * kKvTile < num_tokens; ++tile) {
    uint32_t* bits = BitsOf(tile);
    const size_t gone = CopyKeptBits(kept + tile * kTileWords, num_tokens - tile * kKvTile, bits);
    const bool is_empty = gone == kKvTile || !pages_[tile / TilesOfPage()];
    tiles_[tile] = is_empty ? TileKeys::kNone : gone == 0 ? TileKeys::kAll : TileKeys::kSome;
    num_evicted_ += gone;
  }
  return true;
}

bool PageTable::Evict(const int32_t* positions, size_t count, size_t num_tokens) {
  if (count == 0) return true;
  if (!MakeBits()) return false;
  for (size_t n = 0; n < count; ++n) {
    const size_t position = static_cast<size_t>(positions[n]);
    const size_t tile = position / kKvTile;
    if (!IsKept(position)) continue;
    BitsOf(tile)[position % kKvTile / 32] &= ~(uint32_t{1} << position % 32);
    ++num_evicted_;
    SetTile(tile);
    if (tiles_[tile] != TileKeys::kNone) continue;
    const size_t page = position / page_tokens_;
    if ((page + 1) * page_tokens_ <= num_tokens) DropPageIfEmpty(page);
  }
  return true;
}

void PageTable::EvictPages(size_t begin, size_t end, BlockStock* stock) {
  for (size_t i = begin; i < end; ++i) {
    for (size_t tile = i * TilesOfPage(); tile < (i + 1) * TilesOfPage(); ++tile) {
      for (size_t w = 0; w < kTileWords; ++w) {
        num_evicted_ += static_cast<size_t>(__builtin_popcount(BitsOf(tile)[w]));
        BitsOf(tile)[w] = 0;
      }
      tiles_[tile] = TileKeys::kNone;
    }
    stock->Put(Drop(i));
  }
  SeekFirst();
}

}  // namespace internal
}  // namespace sightline
