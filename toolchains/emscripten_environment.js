// Gives a program in Node the environment of its process, SIGHTLINE_TIER for example; Emscripten's C library makes one up.
Module['preRun'] = [].concat(Module['preRun'] || [], function() {
  if (typeof ENV != 'undefined' && typeof process != 'undefined') Object.assign(ENV, process.env);
});
