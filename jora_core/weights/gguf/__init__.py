"""Reading and writing of GGUF files, the format of llama.cpp and Ollama."""
