"""Questions on the three public filings of the data folder, in our own words.

Those with an answer have a pattern of what only a passage with the answer has.
"""

NVDA, BUCKLE, ORACLE = "nvda-10-k-2025-02-26.html", "buckle-8-k-ex99-1.html", "oracle-8-k.html"

ANSWERED = {
    NVDA: (
        ("What was total revenue in fiscal year 2025?", r"130,497|130\.5 billion"),
        ("What was the gross margin in fiscal year 2025?", r"75\.0\s?%"),
        ("How much net income was earned in fiscal 2025?", r"72,880|72\.9 billion"),
        ("What was net income per diluted share?", r"2\.94"),
        ("How much was spent on research and development in fiscal 2025?", r"12,914|12\.9 billion"),
        ("How many employees does the company have?", r"36,000"),
        ("Where is the headquarters?", r"eadquarter\w* (?:is )?in Santa Clara"),
        ("When was the company incorporated?", r"April 1993"),
        ("What cash dividends were paid to shareholders in fiscal 2025?", r"\$?834\b"),
        ("How much stock was repurchased in fiscal year 2025?", r"34\.0 billion|33,706|310 million"),
        ("How much is left of the share repurchase authorization?", r"38\.7 billion"),
        ("Who is the chief financial officer?", r"(?i)kress"),
        ("Which firm audits the financial statements?", r"PricewaterhouseCoopers"),
        ("What was revenue from customers billed in Singapore?", r"23,684"),
        ("What were the inventories at the end of fiscal 2025?", r"10,080|10\.1 billion"),
        ("What was the effective tax rate?", r"13\.3\s?%"),
        ("What was the revenue of the Compute & Networking segment?", r"116,193"),
        ("How much did Graphics revenue grow?", r"Graphics .*6\s?%"),
        ("What was the contribution expense for employee retirement plans?", r"314 million"),
        ("How large is the commercial paper program?", r"575 million"),
        ("How much goodwill is on the balance sheet?", r"5,188"),
        ("How much did Data Center revenue grow?", r"142\s?%"),
        ("How much office space is owned and leased for the headquarters?", r"3 million square feet"),
        ("In what ratio was the stock split in 2024?", r"ten-for-one"),
        ("By how much did Gaming revenue rise, and why?", r"up 9\s?%"),
    ),
    BUCKLE: (
        ("What was net income in the third quarter?", r"44\.2 million|44,172"),
        ("How much did net sales fall in the quarter?", r"3\.2 percent"),
        ("What were online sales in the third quarter?", r"46\.6 million"),
        ("How many retail stores does the company operate?", r"445"),
        ("What were diluted earnings per share for the 39-week period?", r"2\.35"),
        ("What is the inventory at November 2, 2024?", r"149,351"),
        ("What were total liabilities at November 2, 2024?", r"487,881"),
        ("Who is the contact for investors?", r"Heacock"),
    ),
    ORACLE: (
        ("When was the annual meeting held?", r"November 14, 2024"),
        ("How many votes were for Safra Catz as director?", r"2,241,298,667"),
        ("Which auditor's appointment was ratified?", r"Ernst"),
        ("How many shares voted against executive compensation?", r"508,390,449"),
        ("Was the climate risk proposal approved?", r"did not approve"),
        ("Where are the executive offices?", r"2300 Oracle Way"),
    ),
}

UNANSWERED = {
    NVDA: (
        "How many passengers did the airline carry?",
        "What is the loan loss reserve for residential mortgages?",
        "How many hotel rooms were opened in Europe?",
        "What was the production of crude oil in barrels per day?",
        "Which vaccines received approval by the FDA?",
        "How many paid streaming subscribers were added?",
        "What is the net interest margin of the bank?",
        "What is the occupancy rate of the apartments?",
    ),
    BUCKLE: (
        "How many employees work in research and development?",
        "What was the revenue of the cloud segment?",
        "What is the effective interest rate on the term loan?",
        "How many aircraft are on order?",
        "What was the combined ratio of the insurance business?",
        "Which drugs are in clinical trials?",
    ),
    ORACLE: (
        "What was the company's revenue in the quarter?",
        "How many stores were opened?",
        "What is the dividend yield?",
        "What is the guidance for capital expenditures?",
        "How many ounces of gold were mined?",
        "What was the price of natural gas?",
    ),
}
