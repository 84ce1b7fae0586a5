// Opens what is on disk: judges the whole image first, then changes files.
#pragma once
#include <memory>
#include <string>

#include "state.h"

std::unique_ptr<ImageState> RecoverFolder(const std::string& folder, std::shared_ptr<ShadowImage> base,
                                          OpenReport* report);
std::unique_ptr<ImageState> OpenPacked(const std::string& path, std::shared_ptr<ShadowImage> base);
